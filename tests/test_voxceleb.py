"""VoxCeleb1 and VoxCeleb2 in the layouts that people keep them in, built in small."""

import os
import shutil
from pathlib import Path

import pytest
import soundfile

from spkexp.data import audio
from spkexp.data.corpora.voxceleb import VoxCeleb1, VoxCeleb2
from spkexp.errors import UserError
from tests.audio_files import RATE, encode, tones

DEV = ["id10001/1zcIwhmdeo4/00001", "id10001/1zcIwhmdeo4/00002", "id11251/7w0IBEWc9Qw/00001"]
TEST = ["id10270/x6uYqmx31kE/00001", "id10309/_z_BR0ERa9g/00003"]
DEV2 = ["id00012/21Uxsk56VDQ/00001", "id00015/0fijmz4vTVU/00002"]
TEST2 = ["id00017/01dfn2spqyE/00001", "id09272/u7VNkYraCw0/00027"]


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x.wav, x.flac and x.m4a: a quarter of a second, to be linked under many names."""
    folder = tmp_path_factory.mktemp("sounds")
    wave = tones(0.25, RATE)
    soundfile.write(folder / "x.wav", wave, RATE)
    soundfile.write(folder / "x.flac", wave, RATE)
    encode(folder / "x.m4a", wave, RATE)
    return folder


def add(folder: Path, names: list[str], sounds: Path, extension: str = "wav") -> None:
    for name in names:
        path = folder / f"{name}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(sounds / f"x.{extension}", path)


def voxceleb1() -> VoxCeleb1:
    return VoxCeleb1(subsets=["dev", "test"], protocol="verification")


def voxceleb2() -> VoxCeleb2:
    return VoxCeleb2(subsets=["dev", "test"], voxceleb1=None)


@pytest.mark.parametrize(
    ("dev", "test"),
    [
        ("wav", "wav"),
        ("dev/wav", "test/wav"),
        ("vox1_dev_wav/wav", "vox1_test_wav/wav"),
        ("vox1_dev_wav", "vox1_test_wav"),
        ("voxceleb1", "voxceleb1"),
        ("voxceleb1/dev/wav", "voxceleb1/test/wav"),
        (".", "."),
    ],
)
@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_layouts_of_voxceleb1(tmp_path: Path, sounds: Path, dev: str, test: str, extension: str) -> None:
    root = tmp_path / "Vöx 1 test data"  # its name says 'test', but the speakers' numbers decide
    add(root / dev, DEV, sounds, extension)
    add(root / test, TEST, sounds, extension)
    (root / ".DS_Store").write_bytes(b"x")
    (root / dev / "id10001/1zcIwhmdeo4/._00001.wav").write_bytes(b"x")
    table = voxceleb1().table(root)
    assert table.columns == ["id", "path", "speaker", "video", "split"]
    assert table.drop("path").rows() == [
        ("id10001/1zcIwhmdeo4/00001", "id10001", "1zcIwhmdeo4", "train"),
        ("id10001/1zcIwhmdeo4/00002", "id10001", "1zcIwhmdeo4", "train"),
        ("id10270/x6uYqmx31kE/00001", "id10270", "x6uYqmx31kE", "test"),
        ("id10309/_z_BR0ERa9g/00003", "id10309", "_z_BR0ERa9g", "test"),
        ("id11251/7w0IBEWc9Qw/00001", "id11251", "7w0IBEWc9Qw", "train"),
    ]
    expected = root / test / f"id10270/x6uYqmx31kE/00001.{extension}"
    assert table["path"][2] == os.path.normpath(expected)
    assert audio.durations(table["path"].to_list()) == [0.25] * 5
    only = VoxCeleb1(subsets=["test"], protocol="verification").table(root)
    assert only["id"].to_list() == TEST


@pytest.mark.parametrize(
    ("dev", "test"),
    [
        ("dev/aac", "test/aac"),
        ("dev/wav", "test/wav"),
        ("vox2_dev_aac", "vox2_test_aac"),
        ("VoxCeleb2/dev", "VoxCeleb2/test"),
    ],
)
@pytest.mark.parametrize("extension", ["m4a", "wav"])
def test_layouts_of_voxceleb2(tmp_path: Path, sounds: Path, dev: str, test: str, extension: str) -> None:
    add(tmp_path / dev, DEV2, sounds, extension)
    add(tmp_path / test, TEST2, sounds, extension)
    table = voxceleb2().table(tmp_path)
    assert dict(table.select("id", "split").rows()) == {**dict.fromkeys(DEV2, "train"), **dict.fromkeys(TEST2, "val")}
    assert audio.durations(table["path"].to_list()) == pytest.approx([0.25] * 4, abs=0.1)
    # One part given as the root.
    part = voxceleb2().table(tmp_path / test)
    assert dict(part.select("id", "split").rows()) == dict.fromkeys(TEST2, "val")


def test_merged_voxceleb2_is_split_by_its_meta(tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path / "aac", DEV2 + TEST2, sounds, "m4a")
    table = voxceleb2().table(tmp_path)
    assert set(table["split"]) == {"train"}
    assert (
        "4 utterances are neither below dev/ nor test/, and vox2_meta.csv, which would tell, is not in" in caplog.text
    )
    caplog.clear()
    # As the authors publish it: blanks around the fields.
    (tmp_path / "vox2_meta.csv").write_text(
        "Name ,VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n"
        "A ,id00012 ,n000012 ,m ,dev \nB ,id00015 ,n000015 ,f ,dev \nC ,id00016 ,n000016 ,f ,dev \n"
        "D ,id00017 ,n000017 ,m ,test \nE ,id09272 ,n009272 ,f ,test \n"
    )
    table = voxceleb2().table(tmp_path)
    assert table.select("speaker", "split", "gender").rows() == [
        ("id00012", "train", "m"),
        ("id00015", "train", "f"),
        ("id00017", "val", "m"),
        ("id09272", "val", "f"),
    ]
    assert "VoxCeleb2 dev: 2 of 5,994 speakers, 2 of 1,092,009 utterances; missing are id00016; partly" in caplog.text
    assert "VoxCeleb2 test: 2 of 118 speakers, 2 of 36,237 utterances; partly extracted?" in caplog.text
    (tmp_path / "vox2_meta.csv").write_text("VoxCeleb2 ID,Gender,Set\nid00012,m\n")
    with pytest.raises(UserError, match=r"vox2_meta\.csv:2: expected 3 columns with Set dev or test"):
        voxceleb2().table(tmp_path)


def test_meta_of_voxceleb1(tmp_path: Path, sounds: Path) -> None:
    add(tmp_path / "voxceleb1/wav", DEV + TEST, sounds)
    (tmp_path / "voxceleb1/vox1_meta.csv").write_text(
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
        "id10001\tA.J._Buckley\tm\tIreland\tdev\nid10270\tEartha_Kitt\tf\tUSA\ttest\n"
    )
    for root in (tmp_path, tmp_path / "voxceleb1", tmp_path / "voxceleb1/wav"):
        table = voxceleb1().table(root)
        assert dict(zip(table["speaker"], table.select("gender", "nationality").rows(), strict=True)) == {
            "id10001": ("m", "Ireland"),
            "id10270": ("f", "USA"),
            "id10309": (None, None),
            "id11251": (None, None),
        }


def test_identification_list(tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path / "wav", DEV + TEST, sounds)
    corpus = VoxCeleb1(subsets=["dev", "test"], protocol="identification")
    with pytest.raises(UserError, match=r"no iden_split\.txt there, which data\.corpus\.protocol=identification needs"):
        corpus.table(tmp_path)
    lines = zip("1231", DEV + TEST[:1], strict=True)
    (tmp_path / "iden_split.txt").write_text("".join(f"{part} {name}.wav\n" for part, name in lines))
    table = corpus.table(tmp_path)
    assert dict(table.select("id", "split").rows()) == dict(
        zip(DEV + TEST[:1], ["train", "val", "test", "train"], strict=True)
    )
    assert "1 utterances are left out: not in iden_split.txt" in caplog.text
    (tmp_path / "iden_split.txt").write_text("4 id10001/x/00001.wav\n")
    with pytest.raises(UserError, match=r"iden_split\.txt:1: expected '1\|2\|3 SPEAKER"):
        corpus.table(tmp_path)
    with pytest.raises(UserError, match=r"is of all speakers: set data\.corpus\.subsets=\[dev,test\]"):
        VoxCeleb1(subsets=["test"], protocol="identification")


def test_partly_converted_and_partly_extracted(tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path / "dev/aac", DEV2, sounds, "m4a")
    add(tmp_path / "dev/wav", DEV2[1:], sounds, "wav")
    (tmp_path / "dev/aac/id00018").mkdir()
    (tmp_path / "dev/aac/id00012/21Uxsk56VDQ/notes.txt").write_text("no audio")
    shutil.copy(sounds / "x.m4a", tmp_path / "dev/aac/id00012/00009.m4a")  # no video
    table = voxceleb2().table(tmp_path)
    assert table["path"].to_list() == [
        str(tmp_path / f"dev/aac/{DEV2[0]}.m4a"),
        str(tmp_path / f"dev/wav/{DEV2[1]}.wav"),
    ]
    text = caplog.text
    assert "VoxCeleb2: 1 of the files hold an utterance that is there twice (m4a, wav); of each, one is taken" in text
    assert "1 speakers' folders are empty: id00018" in text
    assert "aac: 1 audio files are left out: not SPEAKER/VIDEO/NUMBER" in text
    assert "VoxCeleb2 dev: 2 of 5,994 speakers, 2 of 1,092,009 utterances; partly extracted?" in text
    assert "VoxCeleb2 test: 0 of 118 speakers" in text
    with pytest.raises(UserError, match="holds no utterance of VoxCeleb2's test, only of its dev"):
        VoxCeleb2(subsets=["test"], voxceleb1=None).table(tmp_path)


def test_missing_speakers_of_voxceleb1_are_named(
    tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path / "wav", DEV + TEST, sounds)
    voxceleb1().table(tmp_path)
    assert "missing are id10002, id10003, id10004, id10005, id10006 and 1204 more; partly extracted?" in caplog.text
    assert "VoxCeleb1 test: 2 of 40 speakers, 2 of 4,874 utterances; missing are id10271," in caplog.text


def test_complete_test_part_is_no_warning(tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture) -> None:
    # 40 speakers: 39 with 121 utterances and one with 155 are the 4,874 of the paper.
    names = [f"id{10270 + s}/v/{i:05d}" for s in range(40) for i in range(155 if s == 0 else 121)]
    for person in {name[:9] for name in names}:
        (tmp_path / "wav" / person).mkdir(parents=True)
    for name in names:
        (tmp_path / "wav" / f"{name}.wav").touch()
    with caplog.at_level("INFO"):
        table = VoxCeleb1(subsets=["test"], protocol="verification").table(tmp_path)
    assert len(table) == 4_874
    assert "VoxCeleb1 test: 40 of 40 speakers, 4,874 of 4,874 utterances: complete" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_both_corpora_below_one_root(tmp_path: Path, sounds: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path / "voxceleb1/dev/wav", DEV, sounds)
    add(tmp_path / "voxceleb1/test/wav", TEST, sounds)
    add(tmp_path / "voxceleb2/dev/aac", DEV2, sounds, "m4a")
    assert voxceleb1().table(tmp_path)["id"].to_list() == sorted(DEV + TEST)
    assert voxceleb2().table(tmp_path)["id"].to_list() == DEV2
    assert "VoxCeleb1: 2 utterances of" in caplog.text
    assert "VoxCeleb2: 5 utterances of" in caplog.text


def test_voxceleb1_joins_voxceleb2_as_test(tmp_path: Path, sounds: Path) -> None:
    add(tmp_path / "two/dev/aac", DEV2, sounds, "m4a")
    add(tmp_path / "one/wav", DEV + TEST, sounds)
    table = VoxCeleb2(subsets=["dev"], voxceleb1=str(tmp_path / "one")).table(tmp_path / "two")
    assert table.select("id", "split").rows() == [
        *((name, "train") for name in DEV2),
        *((name, "test") for name in TEST),
    ]
    with pytest.raises(UserError, match=r"data\.corpus\.voxceleb1=.*two: this is VoxCeleb2, expected VoxCeleb1"):
        VoxCeleb2(subsets=["dev"], voxceleb1=str(tmp_path / "two")).table(tmp_path / "two")


def test_linked_trees_and_a_relative_root(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path / "disk one/id10001", ["v/00001"], sounds)
    add(tmp_path / "disk two", ["w/00001"], sounds)
    wav = tmp_path / "root/wav"
    wav.mkdir(parents=True)
    (wav / "id10001").symlink_to(tmp_path / "disk one/id10001")
    (wav / "id10002").mkdir()
    (wav / "id10002/w").symlink_to(tmp_path / "disk two/w")
    (wav / "id10002/circle").symlink_to(wav)
    monkeypatch.chdir(tmp_path)
    table = voxceleb1().table(Path("root"))
    assert table["path"].to_list() == [str(wav / "id10001/v/00001.wav"), str(wav / "id10002/w/00001.wav")]
    assert "circle: is a link to a folder above it, and is left out" in caplog.text


def test_what_is_no_tree_says_so(tmp_path: Path, sounds: Path) -> None:
    with pytest.raises(
        UserError, match=r"nowhere: no such folder; expected VoxCeleb2: …/SPEAKER/.*m4a.*no longer offer"
    ):
        voxceleb2().table(tmp_path / "nowhere")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/vox1_dev_wav_partaa").touch()
    with pytest.raises(UserError, match=r"found vox1_dev_wav_partaa; unpack the archives first .*as data\.root=DIR"):
        voxceleb1().table(tmp_path / "archives")
    add(tmp_path / "old/wav", ["A.J._Buckley/1zcIwhmdeo4/0000001", "Aamir_Khan/5ablueV_1tw/0000002"], sounds)
    with pytest.raises(UserError, match=r"have names \(A\.J\._Buckley, Aamir_Khan\), as VoxCeleb1's first release"):
        voxceleb1().table(tmp_path / "old")
    add(tmp_path / "v2/dev/aac", DEV2, sounds, "m4a")
    with pytest.raises(UserError, match=r"v2: this is VoxCeleb2, expected VoxCeleb1: .*use data=voxceleb2"):
        voxceleb1().table(tmp_path / "v2")
    with pytest.raises(UserError, match=r"one speaker's folder; give the folder above it, .*aac"):
        voxceleb2().table(tmp_path / "v2/dev/aac/id00012")
    with pytest.raises(UserError, match=r"data\.corpus\.subsets: expected some of dev, test, got \[\]"):
        VoxCeleb2(subsets=[], voxceleb1=None)


def test_a_copy_beside_dev_and_test_keeps_its_subset(tmp_path: Path, sounds: Path) -> None:
    """wav/ converted from both: its files are the cheaper ones and are taken, and no test speaker is trained on."""
    add(tmp_path / "dev/aac", DEV2, sounds, "m4a")
    add(tmp_path / "test/aac", TEST2, sounds, "m4a")
    add(tmp_path / "wav", DEV2 + TEST2, sounds)
    table = voxceleb2().table(tmp_path)
    assert all(path.endswith(".wav") for path in table["path"])
    assert dict(table.select("id", "split").rows()) == dict.fromkeys(DEV2, "train") | dict.fromkeys(TEST2, "val")


def test_sources_beside_the_root(tmp_path: Path) -> None:
    two, one = tmp_path / "a/vox2", tmp_path / "b/vox1"
    corpus = VoxCeleb2(subsets=["dev"], voxceleb1=str(one))
    assert {one, tmp_path / "a/vox2_meta.csv", two / "vox2_meta.csv", tmp_path / "b/vox1_meta.csv"} <= {
        *corpus.sources(two)
    }
    assert tmp_path / "b/iden_split.txt" in voxceleb1().sources(one)
