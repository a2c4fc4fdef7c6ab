"""Tests of data/build_corpus.py on small made-up inputs; no package and no network is needed."""

import collections
import contextlib
import io
import json
import pathlib
import struct
import sys
import tempfile
import unittest
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "data"))
import build_corpus as bc  # noqa: E402


def texts(pieces):
    return [piece.text for piece in pieces]


def source(**changes):
    base = {"package": "p", "domain": "d", "clean": "text", "glob": ["*"]}
    return base | changes


def prose(seed: int, words: int = 120) -> str:
    letters = str.maketrans("0123456789", "abcdefghij")
    return " ".join(str((seed * 7919 + i * i) % 9973).translate(letters) for i in range(words))


class Cleaners(unittest.TestCase):
    def test_manual_page(self):
        page = b"\n".join([
            rb'.\" a comment',
            rb".de XX",
            rb"never seen",
            rb"..",
            rb".TH LS 1",
            rb".SH NAME",
            rb"ls \- list \fIdirectory\fP contents",
            rb".PP",
            rb"See",
            rb".BR stat (2).",
            rb"\(lqquoted\(rq \[aq]x\[aq] C:\e",
        ])  # fmt: skip
        self.assertEqual(
            texts(bc.clean_manual("ls.1", page)),
            ["\nNAME\nls - list directory contents\n\nSee\nstat(2).\n“quoted” 'x' C:\\"],
        )

    def test_html_keeps_words_only(self):
        page = b"<html><script>var x</script><nav>menu</nav><p>One &amp; two</p><pre>a  b</pre></html>"
        (text,) = texts(bc.clean_html("x.html", page))
        self.assertEqual(text.split("\n"), ["", "One & two", "", "a  b", ""])

    def test_generated_code_is_left_out(self):
        self.assertEqual(texts(bc.clean_code("a.h", b"// Do not edit.\nint x;")), [])
        self.assertEqual(texts(bc.clean_code("a.h", b"int x;")), ["int x;"])

    def test_fortune(self):
        self.assertEqual(texts(bc.clean_fortune("f", b"a\n%\nb\n%%\n")), ["a\n\nb"])

    def test_wordnet(self):
        data = b"  1 licence\n00001740 03 n 02 entity 0 a_thing 0 001 ~ 0 n 0 | what is; \"it is\"  \n"
        expected = ['entity, a thing (noun): what is; "it is"']
        self.assertEqual(texts(bc.clean_wordnet("dict/data.noun", data)), expected)

    def test_gutenberg(self):
        data = b"The Project Gutenberg Etext\r\n\r\nCall me Ishmael.\r\n\r\nCopyright laws"
        self.assertEqual(texts(bc.clean_gutenberg("m", data)), ["Call me Ishmael."])

    def test_r_database(self):
        strings = [f"line {i}".encode() for i in range(60)]
        body = b"RDX" + struct.pack(">ii", 16, 60)
        body += b"".join(struct.pack(">ii", 0x40009, len(s)) + s for s in strings)
        record = struct.pack(">i", len(body)) + zlib.compress(body)
        (text,) = texts(bc.clean_rdb("r", record))
        self.assertEqual(text.split("\n")[:2] + text.split("\n")[-1:], ["line 0", "line 1", "line 59"])

    def test_sword_module(self):
        verses = ["<w>In the</w> beginning<note>x</note>", "God &amp; man"]
        block = "".join(verses).encode()
        packed = zlib.compress(block)
        first = len(verses[0].encode())
        places = struct.pack("<IIH", 0, 0, first) + struct.pack("<IIH", 0, first, len(block) - first)
        files = {
            "m/ot.bzz": packed,
            "m/ot.bzs": struct.pack("<III", 0, len(packed), len(block)),
            "m/ot.bzv": places + places[10:],  # the last verse is linked and must not come twice
        }
        self.assertEqual(texts(bc.clean_sword(files)), ["In the beginning\nGod & man"])


class Filters(unittest.TestCase):
    def test_language(self):
        german = "Das ist nicht der Weg, und die Datei wird für den Benutzer auf dem Rechner angelegt."
        self.assertTrue(bc.in_language(german, "de"))
        self.assertFalse(bc.in_language("This is the name of the file that is used for it.", "de"))
        self.assertTrue(bc.in_language("Эта программа печатает имена файлов", "ru"))
        self.assertFalse(bc.in_language("Not translated at all", "ru"))

    def test_what_is_no_text(self):
        self.assertTrue(bc.is_prose_or_program(prose(1), False))
        self.assertFalse(bc.is_prose_or_program("short", False))
        self.assertFalse(bc.is_prose_or_program("0123 " * 200, False))
        self.assertFalse(bc.is_prose_or_program("-" * 500 + prose(1), False))
        self.assertFalse(bc.is_prose_or_program("x = y; " * 200, True))

    def test_shared_lines_go(self):
        pieces = [bc.Piece(f"f{i}", f"f{i}", f"line of the licence text\nown {i}") for i in range(20)]
        self.assertEqual(texts(bc.without_furniture(pieces, None))[:2], ["own 0", "own 1"])

    def test_cut_at_paragraphs(self):
        text = "\n\n".join(prose(i, 300) for i in range(20))
        parts = list(bc.cut(text))
        self.assertGreater(len(parts), 1)
        self.assertLessEqual(max(map(len, parts)), bc.MAX_CHARS)
        self.assertEqual("\n\n".join(parts), text)

    def test_copies_go(self):
        files = {f"f{i}": prose(i % 5).encode() for i in range(10)}
        self.assertEqual(len(bc.documents_of(source(), files)), 5)

    def test_cap_keeps_a_prefix_of_the_hash_order(self):
        files = {f"f{i}": prose(i).encode() for i in range(50)}
        every = bc.documents_of(source(), files)
        some = bc.documents_of(source(cap_mb=0.01), files)
        self.assertEqual(some, every[: len(some)])
        self.assertTrue(0 < len(some) < len(every))


class Splits(unittest.TestCase):
    def test_shares(self):
        counts = collections.Counter(bc.split_of(f"package:file{i}") for i in range(20_000))
        self.assertAlmostEqual(counts["train"] / 20_000, 0.94, delta=0.01)
        self.assertAlmostEqual(counts["validation"] / 20_000, 0.03, delta=0.005)
        self.assertAlmostEqual(counts["test"] / 20_000, 0.03, delta=0.005)

    def test_split_never_changes(self):
        self.assertEqual([bc.split_of(f"p:{i}") for i in range(3)], SPLITS_OF_THREE)

    def test_parts_of_one_file_stay_together(self):
        files = {f"f{i}": "\n\n".join(prose(i * 100 + k, 300) for k in range(30)).encode() for i in range(40)}
        documents = bc.documents_of(source(), files)
        self.assertGreater(len(documents), 80)
        self.assert_no_crossing(documents, lambda d: d.source.rsplit(".", 1)[0])

    def test_runs_of_chunks_stay_together(self):
        data = "\n\n".join(prose(k, 100) for k in range(6000)).encode()
        documents = bc.documents_of(source(clean="gutenberg"), {"book.txt": data})
        chunk = lambda d: int(d.source.split("#")[1].split(".")[0])
        self.assert_no_crossing(documents, lambda d: chunk(d) // bc.CHUNKS_PER_UNIT)
        self.assertEqual({bc.split_of(d.unit) for d in documents}, set(bc.SPLITS))

    def assert_no_crossing(self, documents, file_of):
        splits = collections.defaultdict(set)
        for document in documents:
            splits[file_of(document)].add(bc.split_of(document.unit))
        self.assertEqual({len(found) for found in splits.values()}, {1})


SPLITS_OF_THREE = ["train", "train", "train"]


class Output(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def domains(self):
        return {
            name: bc.documents_of(source(package=name), {f"f{i}": prose(i + n).encode() for i in range(300)})
            for n, name in ((0, "one"), (1000, "two"))
        }

    def test_lines_and_counts(self):
        summary = bc.write_splits(self.domains(), self.folder)
        for split, facts in summary.items():
            lines = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            self.assertEqual(len(records), facts["documents"])
            self.assertEqual({r["domain"] for r in records}, {"one", "two"})
            self.assertEqual(set(records[0]), {"text", "domain", "source"})
        self.assertEqual(sum(facts["documents"] for facts in summary.values()), 600)
        self.assertEqual(list(self.folder.glob("*.tmp")), [])

    def test_same_input_same_bytes(self):
        first = bc.write_splits(self.domains(), self.folder)
        self.assertEqual(first, bc.write_splits(self.domains(), self.folder))

    def test_complete_until_harmed(self):
        recipe = {"manifest_sha256": "a"}
        report = {"recipe": recipe, "splits": bc.write_splits(self.domains(), self.folder)}
        (self.folder / "corpus.json").write_text(json.dumps(report))
        self.assertTrue(bc.is_complete(self.folder, recipe))
        self.assertFalse(bc.is_complete(self.folder, {"manifest_sha256": "b"}))
        with open(self.folder / "test.jsonl", "a") as file:
            file.write("x")
        self.assertFalse(bc.is_complete(self.folder, recipe))

    def test_a_domain_must_be_in_every_split(self):
        few = {"few": bc.documents_of(source(), {"f": prose(1).encode()})}
        with self.assertRaisesRegex(bc.CorpusError, "few has no documents"):
            bc.write_splits(few, self.folder)


class Packages(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.cache = pathlib.Path(scratch.name)
        self.source = source(file="p_1_all.deb", version="1", sha256="00", bytes=3)

    def test_wrong_checksum_of_the_pinned_version(self):
        (self.cache / "p_1_all.deb").write_bytes(b"bad")
        with self.assertRaisesRegex(bc.CorpusError, "wrong SHA-256"):
            bc.obtain(self.source, self.cache)

    def test_superseded_version_is_replaced_and_said(self):
        (self.cache / "p_2_all.deb").write_bytes(b"new")
        asked = []
        original, bc.apt_download = bc.apt_download, lambda what, _: asked.append(what) or (None, "gone")
        self.addCleanup(setattr, bc, "apt_download", original)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            path = bc.obtain(self.source, self.cache)
        self.assertEqual((path.name, asked), ("p_2_all.deb", ["p=1", "p"]))
        self.assertIn("WARNING: p_1_all.deb cannot be had; p_2_all.deb is used", said.getvalue())

    def test_the_manifest_is_sound(self):
        manifest = bc.load_manifest(pathlib.Path(bc.__file__).with_name("manifest.toml"))
        self.assertGreaterEqual(len({s["domain"] for s in manifest["source"]}), 8)
        self.assertLess(sum(s["bytes"] for s in manifest["source"]), 60e6)

    def test_unknown_keys_and_rules_are_refused(self):
        path = self.cache / "manifest.toml"
        known = dict.fromkeys(bc.MANIFEST_KEYS, "x") | {"clean": "text"}
        for change, message in (({"glbo": "x"}, "unknown keys glbo"), ({"clean": "magic"}, "unknown rule")):
            lines = [f'{key} = "{value}"' for key, value in (known | change).items()]
            path.write_text("[[source]]\n" + "\n".join(lines))
            with self.assertRaisesRegex(bc.CorpusError, message):
                bc.load_manifest(path)


if __name__ == "__main__":
    unittest.main()
