"""What the documentation and the project's configuration files name must exist."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Airflow, its types do not

from orchard.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent
# Not CHANGELOG.md: it names files that were removed.
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "local_aws/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
GENERATED = ("build", ".venv", ".uv")
FILE_ENDINGS = ("json", "md", "py", "sh", "toml", "txt", "yaml", "yml")


def code_in(document: Path) -> list[str]:
    """Return the code of a Markdown document: fenced blocks, indented lines and inline spans."""
    text = document.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"^ {4}.*$", rest, flags=re.MULTILINE) + re.findall(r"`([^`\n]+)`", rest)


def paths_in(document: Path) -> Iterator[str]:
    """Yield the words of a document's code that are paths in the repository, without placeholders and generated files.

    A word is a path if it starts with a folder of the repository, or contains a slash and ends like a source file.
    """
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for word in " ".join(code_in(document)).split():
        path = word.strip("()[],;:'\"").removeprefix("./")
        top, slash, _ = path.partition("/")
        is_source = re.fullmatch(rf"[\w.-]+(/[\w.-]+)+\.({'|'.join(FILE_ENDINGS)})", path) is not None
        if slash and top not in GENERATED and (top in folders or is_source) and not re.search(r"[A-Z$*{}…]", path):
            yield path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestDocument:
    def test_every_path_in_its_code_exists(self, document: Path) -> None:
        missing = [path for path in paths_in(document) if not (ROOT / path).exists()]
        assert not missing

    def test_every_relative_link_leads_to_a_file(self, document: Path) -> None:
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        relative = [target for target in targets if "://" not in target]
        assert [target for target in relative if not (document.parent / target).exists()] == []

    def test_every_make_target_exists(self, document: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        named = {name for code in code_in(document) for name in re.findall(r"\bmake ([a-z][a-z-]*)", code)}
        assert named <= targets

    def test_every_module_that_it_runs_exists(self, document: Path) -> None:
        modules = {name for code in code_in(document) for name in re.findall(r"python -m ([\w.]+)", code)}
        paths = {name: ROOT / name.replace(".", "/") for name in modules if (ROOT / name.partition(".")[0]).is_dir()}
        missing = [
            name
            for name, path in paths.items()
            if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file())
        ]
        assert missing == []

    def test_every_setting_that_it_names_exists(self, document: Path) -> None:
        known = {PREFIX + field.name.upper() for field in fields(Settings)}
        assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", document.read_text())) <= known


def test_the_readme_lists_every_setting() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = set(re.findall(rf"^\| `({PREFIX}[A-Z_]+)` \|", readme, flags=re.MULTILINE))
    assert rows == {PREFIX + field.name.upper() for field in fields(Settings)}


def test_contributing_lists_every_folder_of_tests() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = set(re.findall(r"^\| `tests/(\w+)` \|", text, flags=re.MULTILINE))
    assert rows == {path.parent.name for path in (ROOT / "tests").glob("[a-z]*/*") if path.parent.name.isidentifier()}


def test_reliability_lists_every_fault_in_the_order_of_the_tests() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| (?:success|failed) \|", (ROOT / "docs/reliability.md").read_text(), flags=re.MULTILINE
    )
    files = sorted((ROOT / "tests/faults").glob("test_*.py"))
    tests = [name for file in files for name in re.findall(r"^def test_(\w+)", file.read_text(), flags=re.MULTILINE)]
    # The page writes AWS and S3 in capitals.
    assert [row.lower() for row in rows] == [name.replace("_", " ") for name in tests]


def messages() -> Iterator[str]:
    """Yield every text of the pipeline, its pages and the local AWS, with … for each value of an f-string."""
    for folder in ("dags", "local_aws", "plugins", "spark"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
    for script in (ROOT / "bootstrap/install.sh", *(ROOT / "plugins").rglob("*.js")):
        yield script.read_text()


def test_every_message_that_the_runbook_quotes_is_in_the_code() -> None:
    symptoms = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)
    quotes = [quote for symptom in symptoms for quote in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", symptom)]
    assert quotes
    text = "\n".join(messages())
    missing = [quote for quote in quotes if not re.search(re.escape(quote).replace("…", ".*"), text)]
    assert missing == []


def test_the_notice_lists_every_wheel_of_the_nodes() -> None:
    section = (ROOT / "NOTICE").read_text().partition("\n2. ")[2].partition("\n3. ")[0]
    listed = re.findall(r"^([a-z][a-z0-9-]*) {2,}\S", section, flags=re.MULTILINE)
    requirements = (ROOT / "bootstrap/requirements.txt").read_text()
    assert listed == re.findall(r"^([a-z][a-z0-9-]*)==", requirements, flags=re.MULTILINE)


def test_pre_commit_runs_make_lint_on_every_commit() -> None:
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (hook,) = (hook for repository in configuration["repos"] for hook in repository["hooks"])
    assert hook["entry"] == "make lint"
    assert hook["always_run"]
    assert not hook["pass_filenames"]


def test_shellcheck_finds_no_fault_in_any_shell_script() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    shebang = re.compile(rb"#!\s*/\S*/(env\s+)?(ba|da|k)?sh\b")
    scripts = [name for name in listed if (ROOT / name).is_file() and shebang.match((ROOT / name).read_bytes()[:64])]
    (linted,) = re.findall(r"^SHELL_SCRIPTS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert linted.split() == scripts, "`make lint` checks all shell scripts"
    command = [str(Path(sys.executable).with_name("shellcheck")), *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_what_contributors_run() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
