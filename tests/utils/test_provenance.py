"""The commit that a measurement records."""

import subprocess

from d2_deformable.utils import provenance


def test_the_commit_is_dirty_by_code_not_by_results(tmp_path, monkeypatch):
    def git(*args):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *settings, *args], cwd=tmp_path, check=True, capture_output=True)

    written = ("docs/RESULTS.md", "benchmarks/results/x.json")
    for name in ("package/provenance.py", *written):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("old")
    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package/provenance.py"))
    for name in written:
        (tmp_path / name).write_text("new")
    assert "dirty" not in provenance.commit()
    (tmp_path / "package/provenance.py").write_text("new")
    assert provenance.commit().endswith("-dirty")
