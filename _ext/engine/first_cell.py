"""Make a notebook that came alone ready to run: write the modules that it imports, and install the
packages that are missing or too old. Needs nothing but Python 3.10 or later."""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MARK = b"# Written by the first cell of a notebook; edits are lost when it runs again.\n"
SPARE = "notebook-modules-"  # what the name of a temporary folder for modules begins with
AGAIN = "restart the kernel and run this cell again."


class Stop(Exception):
    """What has to be done before the notebook can run; Jupyter shows these words alone."""

    def _render_traceback_(self):
        return [f"Stopped: {self}"]


# ---- modules -------------------------------------------------------------------------------------


def content(path):
    """The bytes of a file; None for nothing, a folder, a link to nowhere, a locked file."""
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except OSError:
        return None


def is_ours(path, text=None):
    """Whether a first cell has written that file, or would write the same."""
    found = content(path)
    if found is None:
        return False
    same = text is not None and found in (text.encode(), MARK + text.encode())
    return same or (found.startswith(MARK) and not path.is_symlink())


def hidden(folder, name):
    """The modules that Python no longer finds beside the packages of a path: a.py beside a/b.py."""
    parts = Path(name).parts
    return [folder.joinpath(*parts[:n]).with_suffix(".py") for n in range(1, len(parts))]


def in_the_way(folder, name, text):
    """The part of a module's path where something of the reader's stands, or None."""
    parts = Path(name).parts
    for module in hidden(folder, name):
        if os.path.lexists(module) and not module.is_dir() and not is_ours(module):
            return module.relative_to(folder).as_posix()
    for n in range(1, len(parts)):
        package = folder.joinpath(*parts[:n])
        if package.is_dir() and not package.is_symlink():
            inside = [path for path in package.iterdir() if path.name != "__pycache__"]
            if not inside or any(map(is_ours, inside)) or is_ours(folder / name, text):
                continue
        if os.path.lexists(package):
            return "/".join(parts[:n])
    if os.path.lexists(folder / name) and not is_ours(folder / name, text):
        return name
    package = (folder / name).with_suffix("")  # Python prefers it to the file of that name
    return str(package.relative_to(folder)) if (package / "__init__.py").exists() else None


def write_into(folder, files):
    """Write what differs and return its names. A package takes the place of a module of that name
    that a first cell has written. Raises Stop before it touches a file of the reader's, OSError where
    the folder cannot be written."""
    new = [
        name
        for name, text in files.items()
        if content(folder / name) not in (text.encode(), MARK + text.encode())
    ]
    blocked = {in_the_way(folder, name, files[name]) for name in files} - {None}
    if new and blocked:
        raise Stop(
            f"this notebook brings its own {' and '.join(sorted(blocked))}, but in {folder} there is "
            f"another of that name, which is left as it is. Rename that one or move the notebook "
            f"into a folder of its own, {AGAIN}"
        )
    for name in new:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_bytes(MARK + files[name].encode())
            os.replace(part, path)  # in one step, and never through a link
        finally:
            part.unlink(missing_ok=True)
    for module in {module for name in files for module in hidden(folder, name)}:
        if is_ours(module):
            module.unlink()
    return new


def write_modules(files):
    """Write modules beside the notebook, or where that is read-only into a temporary folder, and let
    Python find them there first."""
    if not files:
        return
    try:
        folder = Path.cwd()
        new = write_into(folder, files)
    except OSError as error:
        try:
            spare = [path for path in sys.path if Path(path).name.startswith(SPARE)]
            folder = Path(*spare[:1] or [tempfile.mkdtemp(prefix=SPARE)])
            new = write_into(folder, files)
        except OSError:
            raise Stop(
                f"the notebook's folder cannot be written ({error.strerror}), nor can a temporary "
                f"one: move the notebook to where you can write, {AGAIN}"
            ) from None
        if new:
            print(
                f"The notebook's folder cannot be written ({error.strerror}): its modules are in {folder}."
            )
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    tops = {Path(name).parts[0].removesuffix(".py") for name in files}
    held = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
    found = {Path(getattr(held[name], "__file__", None) or "") for name in tops & held.keys()}
    if new or not found <= {folder / name for name in files}:
        for name in held:  # an older text, or another module of that name
            del sys.modules[name]


# ---- packages ------------------------------------------------------------------------------------


def release(version):
    """The release numbers of a version, to be compared: (2, 9) of "2.9.0+cu128"."""
    numbers = [int(n) for n in re.match(r"[\d.]*", version)[0].split(".") if n]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def minimum(line):
    """The release that a requirement such as "torch>=2.9" asks for, () when any will do."""
    found = re.search(r"[>=~]=?([\d.]+)", line)
    return release(found[1]) if found else ()


def installed(line):
    """The version of what a requirement names, None when it is not installed."""
    try:
        return importlib.metadata.version(re.match(r"[\w.-]+", line)[0]) or "0"  # half removed
    except importlib.metadata.PackageNotFoundError:
        return None


def is_enough(module, line):
    version = installed(line)
    if version is not None:
        return release(version) >= minimum(line)
    if module in sys.modules:
        return True
    spec = importlib.util.find_spec(module)  # may come under another name: opencv-python-headless
    return spec is not None and spec.origin is not None


def installer():
    """The command that installs into this kernel's Python, None when there is none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    uv = shutil.which("uv")
    return [uv, "pip", "install", "-q", "--python", sys.executable] if uv else None


def install(packages, *options):
    """Install what is missing or too old of {module: requirement}. Raises Stop."""
    lines = [line for module, line in packages.items() if not is_enough(module, line)]
    if not lines:
        return
    by_hand = (
        f"install {' '.join(lines)} {' '.join(options)}".strip() + f" for {sys.executable}, {AGAIN}"
    )
    command = installer()
    if command is None:
        raise Stop(f"packages are missing or too old, and neither pip nor uv is there: {by_hand}")
    print("Installing", *lines)
    try:
        done = subprocess.run([*command, *options, *lines], capture_output=True, text=True)
        failed, said = done.returncode, done.stdout + done.stderr
    except OSError as error:
        failed, said = True, str(error)
    if failed:
        last = [line for line in said.splitlines() if line.strip()][-6:]
        raise Stop("\n".join(["packages could not be installed:", *last, f"Please {by_hand}"]))
    importlib.invalidate_caches()
    if any(not is_enough(module, line) for module, line in packages.items()):
        raise Stop(f"what was installed is not seen yet: {AGAIN}")


def is_stale(module, line, before):
    """Whether the kernel holds another version of a module than the one that is installed now."""
    version = installed(line)
    if module not in sys.modules or version is None:
        return False
    held = getattr(sys.modules[module], "__version__", None)
    return version != before or (isinstance(held, str) and release(held) < minimum(line))


def install_all(packages, data, archives=()):
    """Install packages, and data packages, of which only the files are needed, without their own
    requirements; wheels, but for the modules in `archives`, which have none. Raises Stop."""
    before = {module: installed(line) for module, line in packages.items()}
    install(packages)
    wheels = {module: line for module, line in data.items() if module not in archives}
    install(wheels, "--no-deps", "--only-binary=:all:")
    install({module: data[module] for module in archives}, "--no-deps")
    stale = [module for module, line in packages.items() if is_stale(module, line, before[module])]
    if stale:
        raise Stop(f"this kernel still holds the older {' and '.join(stale)}: {AGAIN}")
