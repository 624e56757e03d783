"""Files of a user's own, whichever program reads them."""

import re

import pytest

from experiments.apis import command as apis
from experiments.caption import corpus as captions
from experiments.caption.settings import Settings
from experiments.measurements import batching
from experiments.recognize import files
from experiments.running import number_columns
from experiments.tag import sentences
from rnnjax.data import DataError

READERS = {
    "numbers.csv": (number_columns.read_table, "a,b\n1,\0\n", 2),
    "series.csv": (files.read_file, "series,step,x,label\na,1,1,b\nc,1,1,\0\n", 3),
    "series.ts": (files.read_file, "@classLabel true a\0\n@data\n1,2:a\0\n", 1),
    "sentences.conll": (sentences.read_sentences, "one A\nt\0o B\n", 2),
    "captions.tsv": (
        lambda path: captions.read_corpus(Settings(captions=path)),
        "a.png\ta dog\nb\0.png\ta cat\n",
        2,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_nul_character_is_refused_by_its_line(name, tmp_path):
    read, text, line = READERS[name]
    path = tmp_path / name
    path.write_text(text)
    words = f"{path} must have text, got line {line}: a NUL character"
    with pytest.raises(DataError, match=re.escape(words)):
        read(path)


@pytest.mark.parametrize(("kind", "program"), [("apis", apis), ("batching", batching)])
def test_the_folder_of_a_comparison_is_named_by_the_file_and_not_by_its_path(
    kind, program, monkeypatch
):
    folders = []
    monkeypatch.setattr(program, "compare", lambda settings, folder: folders.append(folder))
    assert program.main(["--dataset", "/data/own.csv"]) == 0
    [folder] = folders
    assert re.fullmatch(rf"runs/{kind}-own\.csv-\d{{8}}-\d{{6}}", folder.as_posix())
