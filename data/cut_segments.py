#!/usr/bin/env python3
"""Cut a corpus into pieces of as many tokens as a segment of Lory's, and shuffle them.

  python3 data/cut_segments.py --corpus build/corpus --tokenizer RUN/tokens/tokenizer.model \\
      --tokens 32 --out build/segments

A control: where each segment is a piece of another text, the one before it tells nothing
about it, and choosing experts by it should be worth nothing. Writes OUT/in-order/ and
OUT/shuffled/, each with train.jsonl, validation.jsonl and test.jsonl of the same pieces,
a document each, which with the end token behind it is exactly so many tokens; and a copy
of the tokenizer, to be named in data.tokenizer. A piece begins where a word does; text
that does not come back as the same tokens is left out, and the share of it is printed.
Needs the sentencepiece package.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import shutil
import sys
from collections.abc import Iterator

import sentencepiece


def pieces_of(text: str, size: int, tokenizer: sentencepiece.SentencePieceProcessor) -> Iterator[str]:
    ids = tokenizer.encode(text)
    begins_word = [tokenizer.id_to_piece(i).startswith("\u2581") for i in ids]
    at = 0
    while at + size <= len(ids):
        piece = tokenizer.decode(ids[at : at + size]) if begins_word[at] else ""
        if piece and tokenizer.encode(piece) == ids[at : at + size]:
            yield piece
            at += size
        else:
            at += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True, help="of build_corpus.py")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="a SentencePiece model")
    parser.add_argument("--tokens", type=int, default=32, help="of a piece, the end token among them")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1, help="of the shuffling")
    options = parser.parse_args()

    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.tokenizer))
    for order in ("in-order", "shuffled"):
        (options.out / order).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.tokenizer, options.out / "tokenizer.model")
    for split in ("train", "validation", "test"):
        lines, kept, total = [], 0, 0
        with open(options.corpus / f"{split}.jsonl", encoding="utf-8") as corpus:
            for line in corpus:
                document = json.loads(line)
                total += len(document["text"])
                for piece in pieces_of(document["text"], options.tokens - 1, tokenizer):
                    kept += len(piece)
                    row = {"text": piece, "domain": document["domain"]}
                    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{split}: {len(lines)} pieces, {kept / total:.0%} of the characters", file=sys.stderr)
        (options.out / "in-order" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        random.Random(options.seed).shuffle(lines)
        (options.out / "shuffled" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
