"""What of a run others get: the portable model without paths of this machine, with its results and a model card."""

import logging
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from spkexp import checkpoint, durable, foreign, saved_config
from spkexp.errors import UserError
from spkexp.model_card import Results, model_card
from spkexp.whole_file import replacing, write_json, write_text

log = logging.getLogger(__name__)

CARD = "README.md"


def publish(
    source: str,
    licence: str,
    *,
    to: str | None,
    output: str | None,
    private: bool,
    message: str | None,
    description: str | None,
    labels: bool,
    trust: tuple[str, ...],
) -> None:
    """Write the portable model of `source` to a folder or archive `output`, and to the repository `to` on the hub.

    Prints how others load it. Raises UserError.
    """
    folder = checkpoint.find(source)
    place = None if output is None else Path(output).expanduser()
    if place is not None and place.suffix in (".zip", ".tar"):
        raise UserError(f"output={output}: archives are written as .tar.gz; name one, or a folder")
    if place is not None and place.exists():
        raise UserError(f"output={output}: is there already; name a new folder or archive, or remove it")
    with _portable(folder, checkpoint.load_config(folder, trust), licence, to, description, labels) as made:
        if place is not None:
            _write(made, place)
        if to is not None:
            _push(made, to, private, message or f"Model of {_name(folder)}")


@contextmanager
def _portable(
    folder: Path, config: DictConfig, licence: str, to: str | None, description: str | None, labels: bool
) -> Iterator[Path]:
    """A folder with what is published of the checkpoint `folder`, for as long as the context lasts."""
    names = checkpoint.load_labels(folder) if labels else []
    found = results_of(folder)
    with tempfile.TemporaryDirectory(prefix="spkexp-") as temporary:
        made = Path(temporary, "model")
        made.mkdir()
        tensors = load_file(folder / checkpoint.MODEL)
        if not labels:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(checkpoint.HEAD)}
        save_file(tensors, made / checkpoint.MODEL)
        OmegaConf.save(saved_config.without_paths(config), made / checkpoint.CONFIG)
        write_json(made / checkpoint.LABELS, names)
        if found is not None:
            write_json(made / checkpoint.RESULTS, found.content)
        results = None if found is None else found.read
        write_text(made / CARD, model_card(config, results, licence, to, description, bool(names)))
        durable.seal(made)
        yield made


class Found(NamedTuple):
    """content: of a results.json, whole; read: of it what the card shows."""

    content: Any
    read: Results


def results_of(folder: Path) -> Found | None:
    """The results of the checkpoint `folder`: beside it, or of the run whose best it is; None: it has none.

    Raises UserError where they are none.
    """
    file = next(iter(checkpoint.results_files(folder)), None)
    if file is None:
        return None
    content = foreign.read_json(file, foreign.LABELS_BYTES)
    try:
        return Found(content, Results.model_validate(content))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "it"
        reason = f"{where}: {wrong['msg'].partition(' or instance of ')[0]}"
        raise UserError(f"{file}: is no results.json of a run ({reason}); move it away to publish without") from error


def _name(folder: Path) -> str:
    return folder.parent.parent.name if folder.parent.name == "checkpoints" else folder.name


def _write(made: Path, place: Path) -> None:
    try:
        if place.name.endswith((".tar.gz", ".tgz")):
            with replacing(place) as temporary, tarfile.open(temporary, "w:gz") as archive:
                for file in sorted(made.iterdir()):
                    archive.add(file, file.name, filter=_anonymous)
            print(
                f"{place}\nothers load it from where you put it: https://…/{place.name}#sha256={durable.digest(place)}"
            )
        else:
            place.mkdir(parents=True)
            for file in sorted(made.iterdir()):
                with replacing(place / file.name) as temporary:
                    temporary.write_bytes(file.read_bytes())
            print(f"{place}: {', '.join(sorted(file.name for file in place.iterdir()))}")
    except OSError as error:
        raise UserError(f"output={place}: cannot be written: {error.strerror}; name another place") from error


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The same archive, byte for byte but for the model, whoever makes it and when."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _push(made: Path, to: str, private: bool, message: str) -> None:
    import httpx2
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        api.create_repo(to, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=to, folder_path=made, commit_message=message)
    except errors.HFValidationError as error:
        raise UserError(f"to={to}: is no name of a repository on the hub, USER/NAME: {error}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"to={to}: you are not logged in to the hub; once: hf auth login") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"to={to}: HF_HUB_OFFLINE is set; unset it, or give output=DIR") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "log in with a token that may write there: hf auth login" if status in (401, 403) else "try again"
        raise UserError(f"to={to}: the hub answers {status}: {str(error).splitlines()[0]}; {remedy}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise UserError(f"to={to}: the hub cannot be reached ({error}); output=DIR writes a folder instead") from error
    print(f'{commit}\nothers load it by its name: spkexp.load("{to}")')
