"""The Dockerfile as data: which files it copies, which commands it runs. No engine needed."""

import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One FROM and what follows it."""

    image: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]

    def copies(self) -> list[tuple[list[str], str]]:
        """(sources, destination) of each COPY from the build context."""
        words = [shlex.split(rest) for rest in self.all("COPY") if not rest.startswith("--from=")]
        return [(w[:-1], w[-1]) for w in words]

    def environment(self) -> dict[str, str]:
        return dict(word.split("=", 1) for rest in self.all("ENV") for word in shlex.split(rest))


def dockerfile() -> list[Stage]:
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, rest = line.split(None, 1)
        if name == "FROM":
            stages.append(Stage(rest.split()[0]))
        else:
            stages[-1].instructions.append((name, rest))
    return stages


def steps(command: str) -> list[str]:
    """`RUN --mount=… a && b` → ["a", "b"], with single spaces."""
    command = re.sub(r"--mount=\S+", "", command)
    return [" ".join(step.split()) for step in command.split("&&")]


def readme_command(containing: str) -> str:
    """The one line of the README's shell blocks with this text in it."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (line,) = (line for line in "".join(blocks).splitlines() if containing in line)
    return line


def copy_context(folder: Path) -> None:
    """Put in `folder` what the first stage copies, less what .dockerignore leaves out."""
    for sources, _ in dockerfile()[0].copies():
        for source in sources:
            path = ROOT / source
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(path, folder / source, ignore=ignore)
            else:
                shutil.copy(path, folder / source)
