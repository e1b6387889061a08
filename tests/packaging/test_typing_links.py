"""tools/typing/precast mirrors the import package, so that type checkers see every module."""

import subprocess
import sys
from pathlib import Path


def test_the_links_are_complete(repository: Path) -> None:
    command = [sys.executable, str(repository / "tools" / "typing" / "link.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
