"""What a bootstrap runs on a node: POSIX sh, made of quoted values. Pure."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from rbee.base.files import LocalFile
from rbee.node.traces import NOTE
from rbee.setup.base.payload import package_folder
from rbee.setup.base.put_files import Named
from rbee.transport.connection import quote

#: Minutes after which a leftover belongs to nobody any more.
STALE_MINUTES = 24 * 60
#: Days after which nobody comes back for a build that was broken off, wherever it lies; from its last beginning.
BUILD_DAYS = 3
#: How the name of a build's folder begins, on a node and on the keeper.
BUILD_PREFIX = ".staging-build-"
#: What the hive and the workers import before the first token; a runtime in which one of them fails never gets its
#: name.
IMPORTS = "anyio, jinja2, psutil, starlette.applications, uvicorn"
#: Seconds that a build waits for what an interrupted one left running.
HOLD_S = 60
_BINDINGS = "llama_cpp.llama_cpp"
#: Modules of the payload that see to that the bindings can be imported, and to what they import.
_WITH_LLAMA = ("alone.py", "cuda_libraries.py")
#: What they import for constraints, probabilities and embeddings. Where it cannot be, such requests are told.
_LATER = ("numpy.ctypeslib", "llguidance")


#: The toolkit that `_toolkit` makes, as CMake looks for it: CMAKE_ARGS cannot say a path with a blank. An installed one
#: is to be out of the way, and what a user gives all calls of nvcc.
_OF_CUDA = [
    "unset NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS NVCC_CCBIN CUDA_HOME CUDA_PATH CUDA_ROOT || true",
    'export CUDACXX="$staging/cuda/bin/nvcc" CUDAToolkit_ROOT="$staging/cuda"',
]


@dataclass(frozen=True, slots=True)
class Place:
    """Absolute paths on a node. python: the one that runtimes are made from, "" while there is none."""

    home: str
    uv: str
    python: str = ""


def prepare(home: str) -> str:
    """Make the folders of a node, and remove leftovers of interrupted bootstraps and wheels of earlier ones."""
    return _lines(
        "set -e",
        "umask 077",
        f"home={quote(home)}",
        "newline='\n'",
        'made=""; folder=$home',
        'while [ -n "$folder" ] && [ ! -d "$folder" ]; do made=$made$folder$newline; folder=${folder%/*}; done',
        # One after the other: in a folder such as /tmp somebody else may have been first.
        'printf %s "$made" | sort | while IFS= read -r folder; do',
        '  mkdir "$folder" 2>/dev/null || { [ -d "$folder" ] && [ -O "$folder" ] && [ ! -L "$folder" ]; } || {',
        '    echo "$folder belongs to somebody else" >&2; exit 1; }',
        "done",
        'cd "$home"',
        f'[ -e {NOTE} ] || printf %s "$made" >{NOTE}',
        "mkdir -p payloads runtimes/wheels models log",
        f"find runtimes -name '.staging-*' -prune ! -name '{BUILD_PREFIX}*' -mmin +{STALE_MINUTES} -exec rm -rf {{}} +",
        f"find runtimes -name '{BUILD_PREFIX}*' -prune -mmin +{BUILD_DAYS * 24 * 60} -exec rm -rf {{}} +",
        f"find runtimes/wheels -type f -mmin +{STALE_MINUTES} -exec rm -f {{}} +",
    )


def wheel_path(home: str, wheel: Named) -> str:
    """Where a wheel lies on a node: its folder tells its contents, its own name is what uv goes by."""
    return f"{home}/runtimes/wheels/{wheel.sha256[:16]}/{wheel.name}"


def discard(place: Place) -> str:
    """Remove all wheels: one of them may be damaged."""
    return f"rm -rf {quote(f'{place.home}/runtimes/wheels')}\n"


def fetch_python(place: Place, version: str, timeout_s: int) -> str:
    """Print the path of a Python that uv fetches where it is not there yet. Needs the internet."""
    uv = quote(place.uv)
    folder = f"{place.home}/runtimes/python"
    return _lines(
        *_environment(place.home),
        f"export UV_PYTHON_INSTALL_DIR={quote(folder)} UV_CACHE_DIR={quote(f'{folder}/.cache')} UV_HTTP_TIMEOUT=20",
        "trap 'rm -rf \"$UV_CACHE_DIR\"' EXIT",
        f'limit=""; if command -v timeout >/dev/null 2>&1; then limit="timeout {timeout_s}"; fi',
        f"$limit {uv} python install -q --no-bin {quote(version)} >&2",
        f"chmod -R go= {quote(folder)}",
        f"{uv} python find --managed-python {quote(version)}",
    )


def python_path(place: Place, name: str) -> str:
    """Of a Python that was brought."""
    return f"{place.home}/runtimes/python/{name}/bin/python"


def unpack_python(place: Place, nonce: str, name: str, archive: str) -> str:
    """Put a Python in its place, staged and renamed, where it is not there yet; its archive goes."""
    final = quote(f"{place.home}/runtimes/python/{name}")
    return _lines(
        "set -e",
        *staging(place.home, nonce),
        # That it is wanted shows in its time: a clean-up leaves what is young.
        f"[ ! -d {final} ] || {{ touch {final}; exit 0; }}",
        'mkdir "$staging/python"',
        f'gzip -dc {quote(archive)} | tar -xf - -C "$staging/python"',
        '"$staging/python/bin/python" -I -c "import ssl, ctypes, zlib"',
        'chmod -R go= "$staging/python"',
        f"mkdir -p {quote(f'{place.home}/runtimes/python')}",
        # Another bootstrap may have been first, whose is as good as ours: what was moved into it goes.
        f'mv "$staging/python" {final} 2>/dev/null || [ -d {final} ]',
        f"rm -rf {final}/python {quote(archive)}",
    )


def create_runtime(place: Place, nonce: str, key: str, files: Sequence[Named]) -> str:
    """Make the runtime `key` from wheels and archives of wheels that are on the node: staged, verified, renamed."""
    program, later = _program("make_runtime.py"), _program("compile_later.py")
    modules = [(package_folder() / "system" / name).read_text(encoding="utf-8") for name in _WITH_LLAMA]
    # As one text, which may say that but once, at its begin.
    future = "from __future__ import annotations\n"
    both = "\n".join(modules).replace(future, "")
    llama = f"{future}{both}\npreload(Path(sys.prefix))\nimport_alone({_BINDINGS!r})"
    words = [f"{place.home}/runtimes/{key}", f"import {IMPORTS}", llama, json.dumps(["-I", "-c", later, *_LATER])]
    for file in files:
        words += [file.sha256, wheel_path(place.home, file)]
    return _lines(
        *_environment(place.home),
        *staging(place.home, nonce),
        f'{quote(place.python)} -I -c {quote(program)} "$staging/venv" {" ".join(map(quote, words))}',
    )


def fetch_files(place: Place, limits: Mapping[str, float], files: Sequence[tuple[Named, str]]) -> str:
    """Fetch files by their addresses, limits as `Fetch` has them; prints what fetch_files.py does, or `ended N`."""
    words = [json.dumps(dict(limits))]
    for file, url in files:
        words += [file.sha256, url, wheel_path(place.home, file)]
    program = quote(_program("fetch_files.py"))
    return _lines(
        *_environment(place.home),
        f"{quote(place.python)} -I -c {program} {' '.join(map(quote, words))} || echo ended $?",
    )


def _program(name: str) -> str:
    return resources.files("rbee.setup.base").joinpath(name).read_text(encoding="utf-8")


def build_wheel(
    place: Place,
    folder: str,
    source: tuple[LocalFile, str],
    tools: Sequence[tuple[LocalFile, str]],
    flags: str,
    cuda: Sequence[tuple[LocalFile, str]] = (),
) -> str:
    """Compile a source archive, on a node or here. The last line says `built PATH` or `failed STATUS`.

    folder: is made, or has what an interrupted build left, which is gone on with: `going on: N` says how much of that
    is done. It holds the wheel at the end, and is the caller's to remove. source, tools: each with its path there.
    Tools are installed by their hashes into an environment of their own; the build is given that, and fetches nothing.
    cuda: the wheels that a CUDA toolkit for this build is made of, likewise.
    """
    hold = _program("hold_build.py")
    build = (
        f"{quote(place.uv)} build --wheel --no-index --no-build-isolation "
        '--python "$staging/venv/bin/python" --config-setting build-dir=../../cmake '
        '--out-dir "$staging/built" "$staging/source"/*'
    )
    return _lines(
        *_environment(place.home),
        f"staging={quote(folder)}",
        f"export CMAKE_ARGS={quote(flags)}",
        *(_OF_CUDA if cuda else []),
        *_made_with(place, [file.sha256 for file, _ in (source, *cuda)]),
        *_begin(source[1]),
        *_toolkit(place, cuda),
        'mkdir -p "$staging"; : >>"$staging/lock"',
        *_requirements(tools),
        f'hold() {{ {quote(place.python)} -I -c {quote(hold)} "$staging" {HOLD_S}; }}',
        "status=0",
        f"{{ hold && begin && {_venv(place)} && {_install(place)} && toolkit && go_on && {build}; }} "
        '0<>"$staging/lock" 2>&1 || status=$?',
        'if [ "$status" = 0 ]; then echo "built $(echo "$staging"/built/*.whl)"; else echo "failed $status"; fi',
    )


def _made_with(place: Place, hashes: Sequence[str]) -> list[str]:
    """A shell function: what objects are made of, and with. Ninja itself sees to files, not to another compiler.

    hashes: SHA-256 of the source, and of what a toolkit is made of.
    """
    variables = "CC|CXX|CPATH|LD_LIBRARY_PATH|LIBRARY_PATH|SDKROOT|(C|CXX|CPP|LD)FLAGS"
    variables += "|(CMAKE|CUDA|HIP|ROCM|VULKAN|SKBUILD)[A-Za-z_]*"
    return [
        "made_with() {",
        f"  echo {' '.join(hashes)} {quote(place.python)}",
        f"  env | grep -E '^({variables})=' | sort",
        '  for tool in cc gcc c++ g++ clang++ ld nvcc hipcc glslc "${CC:-cc}" "${CXX:-c++}"; do',
        '    if command -v "$tool"; then "$tool" --version 2>&1 || :; fi',
        "  done",
        "}",
    ]


def _begin(archive: str) -> list[str]:
    """Shell functions: `begin` leaves of an interrupted build what fits, `go_on` says how much that is.

    The source is unpacked once, so that its files keep their times. Files that a loss of power left empty go.
    """
    return [
        "begin() {",
        '  rm -rf "$staging/venv" "$staging/tmp" "$staging/cache" "$staging/built"',
        '  mkdir "$staging/tmp" || return',
        '  export TMPDIR="$staging/tmp" PATH="$staging/venv/bin:$PATH"',
        '  made_with >"$staging/made-with.now"',
        '  [ "$(cat "$staging/made-with.now")" = "$(cat "$staging/made-with" 2>/dev/null)" ] || unpack',
        "}",
        "unpack() {",
        '  rm -rf "$staging/made-with" "$staging/source" "$staging/cmake" "$staging/cuda"',
        f'  mkdir "$staging/source" && gzip -dc {quote(archive)} | tar -xof - -C "$staging/source" &&',
        '    mv "$staging/made-with.now" "$staging/made-with"',
        "}",
        "go_on() {",
        '  log="$staging/cmake/.ninja_log"',
        '  [ -f "$log" ] || return 0',
        '  find "$staging/cmake" -type f -name "*.o" -size 0 -exec rm -f {} +',
        '  echo "going on: $(sed 1d "$log" | cut -f 4 | sort -u | wc -l)"',
        "}",
    ]


def _toolkit(place: Place, wheels: Sequence[tuple[LocalFile, str]]) -> list[str]:
    """A shell function that makes the CUDA toolkit, once: of another one, however alike, all would be compiled anew."""
    if not wheels:
        return ["toolkit() { :; }"]
    words = " ".join(quote(word) for file, path in wheels for word in (file.sha256, path))
    make = f'{quote(place.python)} -I -c {quote(_program("make_toolkit.py"))} "$staging/cuda.part" {words}'
    return [
        "toolkit() {",
        '  [ ! -d "$staging/cuda" ] || return 0',
        f'  rm -rf "$staging/cuda.part" && {make} && mv "$staging/cuda.part" "$staging/cuda"',
        "}",
    ]


def _requirements(files: Sequence[tuple[LocalFile, str]]) -> list[str]:
    """Write down, in the staging folder, which file stands for each project, and its hash."""
    return [
        'export UV_CACHE_DIR="$staging/cache" UV_OFFLINE=1 UV_PYTHON_DOWNLOADS=never',
        "cat > \"$staging/requirements.txt\" <<'END'",
        *(f"{_project(file)} @ file://{urllib.parse.quote(path)} --hash=sha256:{file.sha256}" for file, path in files),
        "END",
    ]


def _venv(place: Place) -> str:
    return f'{quote(place.uv)} venv -q --no-project --python {quote(place.python)} "$staging/venv"'


def _install(place: Place) -> str:
    """Put what `_requirements` wrote down into the environment that `_venv` made; nothing else, from nowhere else."""
    own = '--python "$staging/venv/bin/python"'
    return (
        f'{quote(place.uv)} pip install -q --no-index --no-deps --require-hashes {own} -r "$staging/requirements.txt"'
    )


def staging_path(home: str, nonce: str) -> str:
    return f"{home}/runtimes/.staging-{nonce}"


def staging(home: str, nonce: str) -> list[str]:
    """A staging folder that goes when the script ends, however it ends."""
    return [
        "umask 077",
        f"staging={quote(staging_path(home, nonce))}",
        "trap 'rm -rf \"$staging\"' EXIT",
        "trap 'exit 1' HUP INT TERM",
        # dash writes "Terminated" where nobody reads any more, and would die of that before it cleans up.
        "trap '' PIPE",
        'mkdir "$staging"',
    ]


def _environment(home: str) -> list[str]:
    """uv is to see neither the user's settings nor a virtual environment of the login shell.

    One setting can make it skip the check of hashes, others add indexes. A mirror of Pythons stays: uv has hashes.
    """
    mirror = "UV_PYTHON_INSTALL_MIRROR"
    return [
        "set -eu",
        "umask 077",
        "unset VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH || true",
        f"for name in $(env | sed -n 's/^\\(UV_[A-Z0-9_]*\\)=.*/\\1/p'); do [ $name = {mirror} ] || unset $name; done",
        "export UV_NO_CONFIG=1",
        f"cd {quote(home)}",
    ]


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _project(wheel: LocalFile) -> str:
    return wheel.name.split("-", 1)[0]
