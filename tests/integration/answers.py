"""What the command answers."""

from typer.testing import Result


def refused(result: Result) -> str:
    """The one line that wrong usage is answered with."""
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())
