"""Backups of the databases in a real PostgreSQL: rotated, refused where they are damaged, and restored to the row."""

import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from containers import DOCKER, postgres_programs

DATABASES = {"prefect": "prefect", "mlflow": "mlflow", "mlflow_auth": "mlflow"}  # and who owns each
ROWS = "SELECT md5(i::text) AS word FROM generate_series(1, 20000) i"
DIGEST = (
    "SELECT count(*), md5(string_agg(word, '' ORDER BY word)), min(tableowner)"
    " FROM kept, pg_tables WHERE tablename = 'kept'"
)


class Postgres:
    """A server that listens on a socket in its folder, and what is run against it."""

    def __init__(self, folder: Path, programs: str) -> None:
        self.folder, self.backups = folder, folder / "backups"
        self.user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self.environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PGHOST": str(folder)}
        self.environment |= {"PGUSER": "postgres", "BACKUP_FOLDER": str(self.backups), "BACKUP_KEEP": "2"}
        self.environment |= {"BACKUP_DATABASES": " ".join(DATABASES), "LC_ALL": "C"}
        for user in ("PREFECT", "MLFLOW"):
            self.environment[f"{user}_DATABASE_PASSWORD_FILE"] = str(folder / "password")

    def run(self, *words: str, check: bool = True, **more: str) -> str:
        """What a command says, run as the server's user."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment | more,
            user=self.user.pw_uid if self.user else None,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def script(self, name: str, *words: str, check: bool = True, **more: str) -> str:
        """What a script of docker/ says; it is handed over, as that user may not be let through to its folder."""
        return self.run("bash", "-c", (DOCKER / name).read_text(), name, *words, check=check, **more)

    def sql(self, database: str, statement: str) -> str:
        """The answer to a statement."""
        return self.run("psql", "--no-psqlrc", "-At", f"--dbname={database}", f"--command={statement}").strip()

    def files(self) -> list[str]:
        """The names of all backups."""
        return sorted(path.name for path in self.backups.glob("*.dump"))


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    """A server with the databases of an installation, and a table in each."""
    if (programs := postgres_programs()) is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with TemporaryDirectory(prefix="wbc-", dir="/tmp") as folder:  # a socket's address is short
        its = Postgres(Path(folder), programs)
        for place in (its.folder, its.backups):
            place.mkdir(exist_ok=True)
            if its.user:
                os.chown(place, its.user.pw_uid, -1)
        (its.folder / "password").write_text("a word")
        (its.folder / "password").chmod(0o644)
        its.run("initdb", "-D", "data", "--username=postgres", "--auth=trust", "--no-sync")
        listen = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        its.run("pg_ctl", "-D", "data", "-o", listen, "-l", "log", "-w", "start")
        try:
            its.script("make-databases")
            for database, owner in DATABASES.items():
                its.sql(database, f"CREATE TABLE kept AS {ROWS}; ALTER TABLE kept OWNER TO {owner}")
            yield its
        finally:
            its.run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")


def test_the_newest_backups_stay_and_one_that_fails_costs_none(postgres: Postgres) -> None:
    said = postgres.script("backup")
    assert said.count("backed up: ") == 3
    first = postgres.files()
    for _ in range(2):
        time.sleep(1.1)  # names of backups tell seconds
        postgres.script("backup")
    left = postgres.files()
    assert not set(left) & set(first)
    assert [name.partition("-")[0] for name in left] == sorted([*DATABASES] * 2)
    said = postgres.script("backup", check=False, BACKUP_DATABASES="nobody mlflow")
    assert "NOT backed up: nobody" in said
    assert "backed up: " in said  # the others are
    assert len(postgres.files()) == 6


def test_a_damaged_database_comes_back_from_its_backup(postgres: Postgres) -> None:
    before = {database: postgres.sql(database, DIGEST) for database in DATABASES}
    assert before["mlflow"].startswith("20000|")
    assert before["mlflow"].endswith("|mlflow")
    postgres.script("backup")
    postgres.sql("prefect", "DROP TABLE kept")
    postgres.sql("mlflow", "UPDATE kept SET word = 'other'")
    whole = {name.partition("-")[0]: postgres.backups / name for name in postgres.files()}
    half = postgres.backups / "mlflow-20260101T000000Z.dump"
    half.write_bytes(whole["mlflow"].read_bytes()[:-50_000])
    half.chmod(0o644)
    assert f"{half} cannot be read; mlflow is as it was" in postgres.script("restore", str(half), check=False)
    assert postgres.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname ~ 'mlflow'") == "2"
    assert postgres.sql("mlflow", "SELECT DISTINCT word FROM kept") == "other"
    for database in ("prefect", "mlflow"):
        assert f"restored: {database} from" in postgres.script("restore", str(whole[database]))
    assert {database: postgres.sql(database, DIGEST) for database in DATABASES} == before
    assert "no database nobody" in postgres.script("restore", "nobody-20260101T000000Z.dump", check=False)
