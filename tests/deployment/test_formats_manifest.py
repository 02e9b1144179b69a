"""The rows of a stranger's manifest, by which the files of stitches are found."""

import pytest

from timm_stitch.deployment.formats import program_files
from timm_stitch.deployment.formats.job import locate


@pytest.mark.parametrize("name", ["/etc/passwd", "../other.pt2", "", "a\nb", None, ["x"], "a/b", ".."])
def test_a_manifest_names_files_of_its_own_folder(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.pt2").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^the manifest names the file [^\n]*: expected one of its own folder\.$"):
        locate(tmp_path / "folder", {"file": name})


def test_links_and_damaged_programs_are_refused_in_one_line(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "other.pt2").write_bytes(b"x")
    (folder / "stitch-0.pt2").symlink_to(tmp_path / "other.pt2")
    with pytest.raises(OSError, match="is a link to a file outside of the folder"):
        locate(folder, {"file": "stitch-0.pt2"})
    (folder / "stitch-1.pt2").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^stitch-1\.pt2 cannot be loaded [^\n]*$"):
        program_files.load(folder, {"file": "stitch-1.pt2"})
