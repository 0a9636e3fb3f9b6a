"""The manifest that the studies share, real_speech.csv, from the table of the corpus folder.

    python experiments/manifest.py FOLDER      # the folder that has utterances.csv

Test: 11 speakers of the Arabic speech commands, the 6 of the corpus's own val split and the last 5 of its train split.
Val, which chooses checkpoints and settings: 3 more of its train split, and the first 2 s of each recording of
LibriSpeech's 5 speakers of test-other.
Train: the other 10 Arabic speakers, and LibriSpeech's 120 of train-clean-100, of whom there is one recording each, in
pieces of about 2 s. Who is in val or test is heard in many recordings: no trial compares a recording with itself.
"""

import sys
from pathlib import Path

import polars as pl

RATE = 16_000
PIECE = 2.0  # s
SHORTEST = 1.0  # s: what is left of a recording below it goes to the piece before
TEST, VAL = 5, 3  # speakers of the Arabic train split


def manifest(table: pl.DataFrame) -> pl.DataFrame:
    """Columns id, path, start, stop (samples at 16 kHz), speaker, corpus, split, keyword."""
    arabic = pl.col("corpus") == "arabic_speech_commands"
    of_train = table.filter(arabic, pl.col("split") == "train")["speaker"].unique().sort()
    val, test = of_train[-TEST - VAL : -TEST], of_train[-TEST:]
    table = table.with_columns(
        split=pl.when(pl.col("speaker").is_in(test.implode()) | (arabic & (pl.col("split") == "val")))
        .then(pl.lit("test"))
        .when(pl.col("speaker").is_in(val.implode()) | (pl.col("split") == "test-other"))
        .then(pl.lit("val"))
        .otherwise(pl.lit("train"))
    )
    rows = [row | piece for row in table.iter_rows(named=True) for piece in pieces(row)]
    columns = ("id", "path", "start", "stop", "speaker", "corpus", "split", "keyword")
    return pl.DataFrame(rows, infer_schema_length=None).select(columns)


def pieces(row: dict[str, str | float]) -> list[dict[str, str | float]]:
    """Of a recording of training all pieces, of another the first one."""
    name, samples = str(Path(str(row["path"])).with_suffix("")), round(float(row["duration"]) * RATE)
    size = round(PIECE * RATE)
    if row["split"] != "train":
        return [{"id": name, "start": 0, "stop": min(samples, size)}]
    starts = [start for start in range(0, samples, size) if start == 0 or samples - start >= SHORTEST * RATE]
    stops = [*starts[1:], samples]
    return [
        {"id": f"{name}-{number}", "start": start, "stop": stop}
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def main() -> None:
    folder = Path(sys.argv[1])
    types = {"duration": pl.Float64}
    table = pl.read_csv(folder / "utterances.csv", schema_overrides=types, infer_schema=False)
    manifest(table).write_csv(Path(__file__).with_name("real_speech.csv"))


if __name__ == "__main__":
    main()
