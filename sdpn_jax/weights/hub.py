"""Models of Hugging Face and ModelScope, fetched by the hubs' own libraries (extras `hub`, `modelscope`) and caches.

Of a repository the files of one model are downloaded, of a listed size within a bound; nothing in it is executed.
"""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from absl import logging

from sdpn_jax import storage
from sdpn_jax.errors import UserError, shown
from sdpn_jax.weights.model_folder import CONFIG, WEIGHTS

Listed: TypeAlias = tuple[Mapping[str, float], Callable[[str], Path]]  # bytes of the files by name, what fetches one

MOST_BYTES = 4 * 10**9  # of one model
ENDINGS = ".bin", ".ckpt", ".pth", ".pt", ".safetensors"  # of files of weights
# Scheme, owner and name, revision, and what is meant in the repository. The first three lead out of no folder.
ADDRESS = re.compile(r"(hf|modelscope):/+(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w.-]*))?(?:/(.*?))?/?", re.ASCII)
MOST_NAMES = 10  # in a message
TIMEOUT_S = 30.0  # for an answer that lists a repository


class _Absent(Exception):
    """The hub answers that there is no such repository or revision for us."""


class Address(NamedTuple):
    """What to fetch: of the hub `scheme` the repository OWNER/NAME, a revision, and a file or folder inside, or ""."""

    scheme: str
    name: str
    revision: str
    inside: str

    def __str__(self) -> str:
        revision, inside = self.revision and f"@{self.revision}", self.inside and f"/{self.inside}"
        return f"{self.scheme}://{self.name}{revision}{inside}"


def fetched(source: str | os.PathLike, file_of: Callable[[Collection[str], str], str | None]) -> Path:
    """Returns where a model of a hub lies on this machine: a file of weights, or a model folder.

    source: SCHEME://OWNER/NAME, with @REVISION and /FILE or /FOLDER behind it if wanted, as storage.is_hub knows them.
    file_of: tells by the names in a folder which file is the model, None if the folder itself is. For a hub that does
    not answer its library's cache stands in. Raises UserError for an address that is none, a missing extra, a
    repository or file that is not there, is too large, or out of reach.
    """
    match = ADDRESS.fullmatch(os.fspath(source))
    if not match:
        raise UserError(f"{source} is no address of a model: write SCHEME://OWNER/NAME, @REVISION and /FILE if wanted")
    address = Address(*match.groups(default=""))
    sizes, bring = _listing(address)
    wanted = _wanted(address, sizes, file_of)
    try:
        paths = [bring(name) for name in wanted]
    except Exception as error:  # whatever the library raises
        raise UserError(
            f"{address} cannot be downloaded ({_reason(error)}): look at network and disk, then run the command again"
        ) from error
    path = paths[0] if len(paths) == 1 else paths[0].parent
    logging.info("%s is in %s", address, path)
    return path


def _listing(address: Address) -> Listed:
    """Asks the hub for a repository's files, or else its library's cache; UserError as `fetched` raises it."""
    module, extra = storage.HUBS[address.scheme]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{address} needs {module}: pip install 'sdpn_jax[{extra}]'")
    ask, cached = (_hugging_face, _cached_hugging_face) if address.scheme == "hf" else (_modelscope, _cached_modelscope)
    try:
        return ask(address.name, address.revision)
    except _Absent:
        raise UserError(
            f"{address}: the hub has no such repository or revision, or hides it: look at the address, or log in with "
            f"{module}"
        ) from None
    except Exception as error:  # whatever the library raises when it cannot ask
        why = _reason(error)
        try:
            listed = _listed(cached(address.name, address.revision))
        except Exception:
            raise UserError(
                f"{address} is out of reach ({why}), and not in the cache of {module}: look at address and network, "
                "then run the command again"
            ) from error
        logging.warning("%s is out of reach (%s): what the cache holds of it is taken", address, why)
        return listed


def _wanted(address: Address, sizes: Mapping[str, float], file_of: Callable) -> list[str]:
    """Chooses what is downloaded, a file of weights or the two of a model folder; UserError as `fetched` raises it."""
    if odd := [name for name in sizes if not _is_plain(name)]:
        raise UserError(
            f"{address}: a file there is named {shown(odd[0])}, which may lie anywhere: nothing is downloaded"
        )
    inside = address.inside
    before = f"{inside}/" if inside else ""
    names = [name.removeprefix(before) for name in sizes if name.startswith(before)]
    if inside in sizes:
        wanted = [inside] if inside.endswith(ENDINGS) else []
    else:
        file = file_of([name for name in names if "/" not in name], str(address))
        wanted = [before + name for name in ([file] if file else [CONFIG, WEIGHTS])]
    if not wanted or not {*wanted} <= {*sizes}:
        there = sorted(names or sizes)
        told = ", ".join(map(shown, there[:MOST_NAMES])) + (", ..." if len(there) > MOST_NAMES else "")
        raise UserError(
            f"{address} is no model, neither a folder of one nor a file of weights; there are: {told or 'none'}"
        )
    total = sum(sizes[name] for name in wanted)
    if total > MOST_BYTES:
        raise UserError(
            f"{address} has {total / 1e9:.1f} GB; models of at most {MOST_BYTES / 1e9:.0f} GB are downloaded"
        )
    return wanted


def _is_plain(name: str) -> bool:
    """Tells whether a name in a listing stays below the folder it is put in."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & {*name.split("/")}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {shown(' '.join(str(error).split()), 120)}"


def _listed(folder: Path) -> Listed:
    """Lists what a cache holds of a repository."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if not sizes:
        raise FileNotFoundError(folder)
    return sizes, lambda name: folder / name


def _hugging_face(name: str, revision: str) -> Listed:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        about = HfApi().model_info(name, revision=revision or None, timeout=TIMEOUT_S, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _Absent from error
    commit = str(about.sha)

    def bring(file: str) -> Path:
        path = Path(hf_hub_download(name, file, revision=commit))  # as listed, whatever the branch holds by now
        if revision != commit:
            with contextlib.suppress(OSError):  # a cache that is read only
                refs = storage.make_folder(path.parents[file.count("/") + 2] / "refs")
                storage.write_text(refs / (revision or "main"), commit)  # by which the cache is found without the hub
        return path

    return {file.rfilename: math.inf if file.size is None else file.size for file in about.siblings or ()}, bring


def _cached_hugging_face(name: str, revision: str) -> Path:
    """The folder of a repository's files in the cache, whose layout is that of the library's documentation."""
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    ref = repository / "refs" / (revision or "main")
    return repository / "snapshots" / (ref.read_text() if ref.is_file() else revision or "main")


def _modelscope(name: str, revision: str) -> Listed:
    from modelscope_hub import HubApi
    from modelscope_hub.errors import AuthenticationError, NotExistError, PermissionDeniedError

    hub = HubApi()
    try:
        listed = hub.list_repo_files(name, "model", revision=revision or None)
    except (AuthenticationError, NotExistError, PermissionDeniedError) as error:
        raise _Absent from error
    files = {file.path: file for file in listed if file.type != "tree"}

    def bring(file: str) -> Path:
        told = files[file]
        return hub.download_file(
            name, "model", file, revision=revision or None, expected_sha256=told.sha256, file_size=told.size
        )

    return {name: file.size for name, file in files.items()}, bring


def _cached_modelscope(name: str, revision: str) -> Path:
    from modelscope_hub import HubApi

    return HubApi().download_repo(name, "model", revision=revision or None, local_files_only=True)
