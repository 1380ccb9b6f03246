"""Cluster settings: from a file, from the command line, and in words where they are wrong."""

from pathlib import Path

import pytest

from flows.cluster import ClusterError, ClusterSettings, read_settings

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"


def test_settings_file_names_a_class_with_arguments(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('class = "a.B"\nminimum = 2\nmaximum = 4\nwait_seconds = 9\n[arguments]\nqueue = "gpu"\n')
    found = read_settings(str(path))
    assert found == ClusterSettings(None, "a.B", {"queue": "gpu"}, None, 2, 4, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wrokers = 2", "wrokers is unknown; the keys are scheduler, class, arguments, workers"),
        ("workers = ", "site.toml"),
        ("workers = 0", "workers is 0: input should be greater than 0"),
        ('workers = "two"', "workers is 'two', not an integer"),
        ('scheduler = "tcp://a:1"\nclass = "a.B"', "tcp://a:1 has its workers"),
        ("[arguments]\nqueue = 1", "none is named"),
        ('class = "LocalCluster"', "'LocalCluster' is not the import path"),
        ('class = "distributed.Local Cluster"', "'distributed.Local Cluster' is not the import path"),
        ('class = "distributed."', "'distributed.' is not the import path"),
        ('class = "os.system"\n[arguments]\ncommand = "id"', "os.system is part of Python itself, no Dask cluster"),
        ('class = "a.B"\nminimum = 5\nmaximum = 4', "from 5 to 4"),
        ("maximum = 4", "can adapt"),
        ('class = "a.B"\nworkers = 2\nmaximum = 4', "maximum of 4"),
    ],
)
def test_wrong_settings_are_refused_with_file_and_reason(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"site\.toml: ") as error:
        read_settings(str(path))
    assert words in str(error.value)


@pytest.mark.parametrize("path", sorted(DEPLOYMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_settings_are_understood(path: Path) -> None:
    assert read_settings(str(path)).wait_seconds >= 60


def test_what_is_asked_for_overrides_the_settings() -> None:
    site = ClusterSettings(cluster_class="a.B", arguments={"queue": "gpu"}, maximum=8, wait_seconds=9)
    assert site.overridden(None, None) == site
    assert site.overridden(3, None).workers == 3
    assert site.overridden(3, None).maximum is None
    assert site.overridden(None, "tcp://a:1") == ClusterSettings(scheduler="tcp://a:1", wait_seconds=9)
    with pytest.raises(ClusterError, match="has its workers"):
        site.overridden(3, "tcp://a:1")
