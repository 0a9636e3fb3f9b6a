#!/usr/bin/env bash
# Builds the fused kernels of the Mamba models, causal-conv1d and mamba-ssm, for the cards of this machine against the
# torch that is installed, and installs them. Takes some minutes with 16 cores, half an hour with four.
#
#   tools/build_mamba.sh                       # sources from PyPI, in the versions of pyproject.toml's extra `cuda`
#   tools/build_mamba.sh SOURCE [SOURCE]       # folders or .tar.gz archives of the sources, for a machine without network
#
#   PYTHON=…                 the interpreter; default: of the active environment, else .venv
#   TORCH_CUDA_ARCH_LIST=9.0 architectures, separated by `;`; default: those of the cards that are here
#   CUDA_HOME=…              the CUDA toolkit with nvcc; default: looked for
#   MAX_JOBS=…               compilers at once (each takes up to 4 GB); default: one a core
#   WHEELS=DIR               keep the built wheels there, to install them elsewhere with pip install --no-deps
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fail() { printf 'build_mamba: %s\n' "$*" >&2; exit 1; }
say() { printf 'build_mamba: %s\n' "$*" >&2; }

# --- the interpreter and its torch
if [ -z "${PYTHON:-}" ]; then
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then PYTHON=python
    elif [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python
    else PYTHON=python3
    fi
fi
command -v "$PYTHON" >/dev/null || fail "no interpreter $PYTHON; set PYTHON to that of the environment"
python() { "$PYTHON" "$@"; }
python -m pip --version >/dev/null 2>&1 || fail "$PYTHON has no pip: $PYTHON -m ensurepip"
python -c 'import torch' 2>/dev/null || fail "torch is not installed for $PYTHON; install spkexp first: pip install -c constraints.txt -e ."
torch_cuda=$(python -c 'import torch; print(torch.version.cuda or "")')
[ -n "$torch_cuda" ] || fail "this torch is built without CUDA; install a build for CUDA first"
PATH=$(python -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH  # ninja, if it lies there
export PATH

# --- the CUDA toolkit
CUDA_HOME=$(
    nvcc=$(command -v nvcc || true)
    for folder in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${CONDA_PREFIX:-}" \
        "${nvcc:+$(dirname "$(dirname "$(readlink -f "$nvcc")")")}" /usr/local/cuda; do
        [ -n "$folder" ] && [ -x "$folder/bin/nvcc" ] || continue
        for headers in "$folder"/include "$folder"/targets/*/include; do
            if [ -f "$headers/cuda_runtime_api.h" ]; then echo "$folder"; exit; fi
        done
    done
    true
)
[ -n "$CUDA_HOME" ] || fail "no CUDA toolkit (nvcc and cuda_runtime_api.h) was found; install CUDA $torch_cuda, e.g. with \
conda env create -f environment-cuda.yml, or set CUDA_HOME"
export CUDA_HOME
for folder in "$CUDA_HOME"/targets/*; do  # conda's place for headers, which torch does not look into
    [ -d "$folder/include" ] && export CPATH="$folder/include${CPATH:+:$CPATH}"
    [ -d "$folder/lib" ] && export LIBRARY_PATH="$folder/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
done
nvcc_version=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
[ "${nvcc_version%%.*}" = "${torch_cuda%%.*}" ] ||
    fail "$CUDA_HOME has CUDA $nvcc_version, torch is built for $torch_cuda; set CUDA_HOME to a toolkit of CUDA ${torch_cuda%%.*}"
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler (${CXX:-c++}); install g++ or set CXX"

# --- the architectures
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
    TORCH_CUDA_ARCH_LIST=$(python -c '
import torch
cards = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
print(";".join(f"{major}.{minor}" for major, minor in sorted(cards)))')
    [ -n "$TORCH_CUDA_ARCH_LIST" ] || fail "no CUDA card is here; to build for one, set TORCH_CUDA_ARCH_LIST, e.g. 9.0 for an H100"
fi
export TORCH_CUDA_ARCH_LIST
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
# Compile, and take no wheel from elsewhere. mamba-ssm after 2.3.2 compiles only where KEEP_CUDA_BUILD says so.
export MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE

# --- what the builds need, and einops, which mamba-ssm's Triton kernels import
needed=$(python -W ignore - <<'PY'
import importlib.util
import shutil

try:
    import setuptools  # noqa: F401  (brings a wheel of its own since version 70)
except ImportError:
    print("setuptools")
try:
    from wheel.bdist_wheel import bdist_wheel  # noqa: F401
except ImportError:
    print("wheel")
for name in ("packaging", "einops"):
    if importlib.util.find_spec(name) is None:
        print(name)
if shutil.which("ninja") is None:
    print("ninja")
PY
)
if [ -n "$needed" ]; then
    say "installing ${needed//$'\n'/ }"
    # shellcheck disable=SC2086  # one word a package
    python -m pip install --quiet $needed || fail "could not install ${needed//$'\n'/ }; bring them along as wheels"
fi

# --- the sources: given, or from PyPI
work=$(mktemp -d "${TMPDIR:-/tmp}/build-mamba.XXXXXX")
mkdir "$work/given" "$work/archives" "$work/sources"
declare -A source
place() {  # FOLDER_OR_ARCHIVE: a copy of the sources, which will be changed, under its package's name
    local copy from=$1
    copy=$(mktemp -d "$work/given/XXXXXX")
    if [ -d "$from" ]; then cp -R "$from/." "$copy"
    elif [ -f "$from" ]; then tar -xf "$from" -C "$copy" --strip-components=1
    else fail "$from is neither a folder nor an archive"
    fi
    for package in causal_conv1d mamba_ssm; do
        if [ -f "$copy/setup.py" ] && [ -f "$copy/$package/__init__.py" ]; then
            rm -rf "$copy/build" "${work:?}/sources/$package"
            mv "$copy" "$work/sources/$package"
            source[$package]=$work/sources/$package
            return
        fi
    done
    fail "$from holds the sources of neither causal-conv1d nor mamba-ssm"
}
for argument in "$@"; do place "$argument"; done
mapfile -t requirements < <(python -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["cuda"], sep="\n")' "$root/pyproject.toml")
for requirement in "${requirements[@]}"; do
    name=${requirement%%==*}
    [ -z "${source[${name//-/_}]:-}" ] || continue
    say "downloading $requirement"
    # pip asks the source for its metadata; without compiling, and without an environment with a torch of its own.
    CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=FALSE \
        python -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation -d "$work/archives" "$requirement" ||
        fail "$requirement could not be downloaded; on a machine without network give the sources: tools/build_mamba.sh \
causal_conv1d-….tar.gz mamba_ssm-….tar.gz"
    place "$(find "$work/archives" -name "${name//-/_}-*.tar.gz" -o -name "$name-*.tar.gz" | head -n 1)"
done

# --- build and install
wheels=${WHEELS:-$work/wheels}
mkdir -p "$wheels"
say "torch for CUDA $torch_cuda, nvcc $nvcc_version ($CUDA_HOME), architectures $TORCH_CUDA_ARCH_LIST, $MAX_JOBS at once"
for package in causal_conv1d mamba_ssm; do
    # The setup.py names nine architectures; without them torch compiles for those of TORCH_CUDA_ARCH_LIST.
    sed -i -E 's/cc_flag\.append\("(-gencode|arch=compute_[^"]*)"\)/pass/' "${source[$package]}/setup.py"
    ! grep -q 'arch=compute' "${source[$package]}/setup.py" ||
        say "$package: setup.py names architectures in a way that is not known here; it will build for all of them"
    log=$work/$package.log
    say "building $package (log: $log)"
    begin=$SECONDS
    python -m pip wheel -v --no-deps --no-build-isolation --no-index --wheel-dir "$work/built" "${source[$package]}" \
        >"$log" 2>&1 || {
        grep -n -i -E 'error|fatal' "$log" | head -n 20 >&2 || true
        tail -n 15 "$log" >&2
        fail "$package did not build; the whole log is $log"
    }
    wheel=$(find "$work/built" -name "$package-*.whl")
    python -m pip install --quiet --no-deps --no-index --force-reinstall "$wheel"
    mv "$wheel" "$wheels/"
    say "$package is installed after $((SECONDS - begin)) s"
done

# --- what can be used now
cd "$root"
python - <<'PY' || fail "not everything works; the logs are in $work"
import importlib
import sys

import torch

problems = []
for module, use in (
    ("selective_scan_cuda", "the selective scan of Mamba"),
    ("causal_conv1d", "the short convolution of all Mamba layers"),
    ("spkexp.ops.ssd", "the state-space duality of Mamba-2"),
):
    try:
        loaded = importlib.import_module(module)
        if module == "spkexp.ops.ssd":
            loaded._load_cuda()
    except Exception as error:
        problems.append(f"{module} ({use}): {type(error).__name__}: {error}")
if torch.cuda.is_available() and not problems:
    from spkexp.ops.causal_conv import causal_conv
    from spkexp.ops.selective_scan import selective_scan

    x = torch.randn(2, 16, 32, device="cuda")
    for name, call in (
        ("selective scan", lambda how: selective_scan(x, x.abs(), -x[0, :, :4].abs(), x[:, :4], x[:, :4], backend=how)),
        ("causal convolution", lambda how: causal_conv(x, x[0].new_ones(32, 1, 4), x[0, 0], backend=how)),
    ):
        try:
            torch.testing.assert_close(call("fused"), call("torch"), rtol=1e-4, atol=1e-4)
        except Exception as error:
            problems.append(f"{name} on {torch.cuda.get_device_name()}: {error}")
elif not problems:
    print("build_mamba: no CUDA card is here; the kernels were loaded, not run", file=sys.stderr)
for problem in problems:
    print(f"build_mamba: missing: {problem}", file=sys.stderr)
sys.exit(bool(problems))
PY
rm -rf "$work"
say "selective_scan_cuda, causal_conv1d and mamba-ssm's Triton kernels can be imported; \`make test-cuda\` tests them on a card"
