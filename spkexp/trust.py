"""Which classes a config may name: a `_target_` can be the name of any function, and building it calls it.

The names are held against a list before anything is looked for, so that a module beside a config is not even found;
then against the source that defines the class, which is read and not imported.
"""

from collections.abc import Iterator, Sequence

from spkexp.signature import TargetError, owner_of

# The parts of spkexp that configs are made of, and what else conf/ names.
PARTS = (
    *("models", "features", "features_stft", "losses", "augment", "schedule"),
    *("data.sampler", "data.recordings", "data.corpora"),
)
OF_SPKEXP = tuple(f"spkexp.{part}" for part in PARTS)
OUTSIDE = ("torch.optim",)
# What conf/hydra/ names, and Hydra's own for a single run and a plain sweep.
OF_HYDRA = (
    "hydra_plugins.spkexp_launchers.joblib_launcher.JoblibLauncher",
    "hydra_plugins.spkexp_launchers.submitit_launcher.LocalLauncher",
    "hydra_plugins.spkexp_launchers.submitit_launcher.SlurmLauncher",
    "hydra_plugins.spkexp_launchers.ray_launcher.RayLauncher",
    "hydra_plugins.spkexp_optuna.sweeper.OptunaSweeper",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
)
# What of the section hydra a file of configs may set. Much of the rest runs code: by callbacks, logging, the job's
# environment, the folder that it starts in, overrides that nobody has checked.
OF_FILES = ("launcher", "sweeper")
# What even of a launcher or sweeper it may not: shell commands, sbatch's options, a cluster and a database of which
# pickles would be opened, overrides.
OF_COMMAND_LINE = ("setup", "additional_parameters", "address", "storage", "params")
# What Hydra fills in, whatever was there; and what is refused from everywhere.
ASIDE = ("runtime", "job.override_dirname", "callbacks")
# Hydra's other words in a node. None is of use here, and `_args_` would get past the check of the arguments.
SPECIALS = ("_args_", "_partial_", "_convert_", "_recursive_")


def untrusted(config: object, trust: Sequence[str] = (), path: str = "") -> list[str]:
    """What the plain containers `config` name that is not to be built, a line each with its dotted key.

    trust: packages or modules beside spkexp whose classes may be named. Nothing is imported.
    """
    return list(dict.fromkeys(_untrusted(config, tuple(trust), path)))


def untrusted_of_hydra(config: object) -> list[str]:
    """The same of the section hydra, which Hydra itself builds from: launcher, sweeper, callbacks, logging."""
    return list(dict.fromkeys(_of_hydra(config, "hydra")))


def set_by_files(hydra: object, own: object) -> list[str]:
    """What a file of configs says in the section `hydra` and must not, a line each with its dotted key.

    own: the section as conf/ and the command line alone make it. Both with their interpolations: what `${…}` stands
    for could be a node to build.
    """
    return [
        f"hydra.{path}: counts on the command line alone, not in a file; give it there: 'hydra.{path}=…'"
        for path in _set_by_files(hydra, own, "")
    ]


def why_not(target: object, trust: Sequence[str] = ()) -> str | None:
    """Why the class `target` is not to be built, in words; None: it may be."""
    if not isinstance(target, str) or not _is_dotted(target):
        return f"expected the import path of a class, got {target!r}"
    package = target.partition(".")[0]
    allowed = (*OF_SPKEXP, *OUTSIDE, *trust)
    if package != "spkexp" and not _is_below(target, allowed):
        return f"{target} is no class of spkexp; if you trust that code: trust=[{package}]"
    try:
        owner = owner_of(target)
    except TargetError as error:
        return str(error)
    if _is_below(owner, allowed):
        return None
    if _is_below(owner, ("spkexp",)):
        return f"{target} is no part of a model or of its training ({', '.join(OF_SPKEXP)})"
    return f"{target} is a class of {owner}; if you trust that code: trust=[{owner.partition('.')[0]}]"


def _untrusted(value: object, trust: tuple[str, ...], path: str) -> Iterator[str]:
    for key, child in _children(value):
        place = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            if (reason := why_not(child, trust)) is not None:
                yield f"{place}: {reason}"
        elif key in SPECIALS:
            yield f"{place}: is Hydra's, and spkexp has no use for it; remove it"
        else:
            yield from _untrusted(child, trust, place)


def _of_hydra(value: object, path: str) -> Iterator[str]:
    for key, child in _children(value):
        place = f"{path}.{key}"
        if key == "_target_" and child not in OF_HYDRA:
            yield f"{place}: {child} is no launcher or sweeper of spkexp; remove it"
        elif key in ("()", "class", "ext") and not (isinstance(child, str) and _is_below(child, ("logging",))):
            yield f"{place}: {child} would be called by logging; remove it"
        elif place == "hydra.callbacks" and child:
            yield f"{place}: there are none for spkexp; remove them"
            yield from _of_hydra(child, place)
        else:
            yield from _of_hydra(child, place)


def _set_by_files(found: object, own: object, path: str) -> Iterator[str]:
    """Dotted keys, without hydra, that `found` has otherwise than `own` and that a file is not to set."""
    if found == own or path in ASIDE:
        return
    if path in ("", "job", *OF_FILES) and isinstance(found, dict) and isinstance(own, dict):
        for key in dict.fromkeys([*found, *own]):
            yield from _set_by_files(found.get(key), own.get(key), f"{path}.{key}" if path else str(key))
        return
    section, _, setting = path.partition(".")
    if section not in OF_FILES or setting in OF_COMMAND_LINE or _holds_interpolation(found):
        yield path


def _holds_interpolation(value: object) -> bool:
    if isinstance(value, str):
        return "${" in value
    return any(_holds_interpolation(key) or _holds_interpolation(child) for key, child in _children(value))


def _children(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _is_dotted(target: str) -> bool:
    words = target.split(".")
    return len(words) > 1 and all(word.isidentifier() for word in words)


def _is_below(name: str, parents: Sequence[str]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)
