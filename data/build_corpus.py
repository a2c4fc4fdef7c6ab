#!/usr/bin/env python3
"""Turn the Debian packages named in manifest.toml into a corpus of clean text.

  python3 data/build_corpus.py --out corpus --cache packages

Writes OUT/train.jsonl, OUT/validation.jsonl and OUT/test.jsonl, one document
{"text", "domain", "source"} per line, and OUT/corpus.json, which says what they were
made from. Needs Python 3.11, dpkg-deb and, for packages that are not in the cache yet,
apt-get. The same packages, manifest and program give the same bytes.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import concurrent.futures
import dataclasses
import fnmatch
import gzip
import hashlib
import html
import html.parser
import json
import lzma
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator

SPLITS = {"train": 0.94, "validation": 0.03, "test": 0.03}
MIN_CHARS = 300  # shorter documents are mostly headings
MAX_CHARS = 12_000  # longer ones are cut, at a paragraph where possible
CHUNKS_PER_UNIT = 8  # a huge file is cut into chunks, and runs of this many share a split
LARGEST_SOURCE_FILE = 400_000  # bytes; larger program sources are tables

MANIFEST_KEYS = {
    "domain", "package", "version", "file", "sha256", "bytes", "licence", "glob", "clean",
}  # fmt: skip
OPTIONAL_KEYS = {"exclude", "language", "cap_mb"}


class CorpusError(Exception):
    """Something the user can put right; printed as one line."""


# --- Units: a file of the package, or a run of chunks of a huge one ------------------------


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of cleaned text. All pieces with the same `unit` go to the same split."""

    unit: str
    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Document:
    source: str
    unit: str
    text: str

    @property
    def order(self) -> str:
        """Documents are laid out in this order, so that any slice is a uniform sample."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def size(self) -> int:
        return len(self.text.encode())


def split_of(unit: str) -> str:
    """A function of the unit's name alone: adding a source never moves another's documents."""
    point = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8]) / 2**64
    for split, share in SPLITS.items():
        if point < share:
            return split
        point -= share
    return "test"  # only if the shares do not quite add up to one in floating point


def whole_file(path: str, text: str) -> Iterator[Piece]:
    yield Piece(path, path, text)


def in_chunks(path: str, paragraphs: Iterable[str], chars: int, joint: str) -> Iterator[Piece]:
    """Join paragraphs into chunks of about `chars`; runs of consecutive chunks form a unit."""
    for number, chunk in enumerate(joined(paragraphs, chars, joint)):
        yield Piece(f"{path}#{number // CHUNKS_PER_UNIT}", f"{path}#{number}", chunk)


def joined(paragraphs: Iterable[str], chars: int, joint: str) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for paragraph in paragraphs:
        paragraph = paragraph.strip("\n")
        if not paragraph.strip():
            continue
        held.append(paragraph)
        length += len(paragraph)
        if length >= chars:
            yield joint.join(held)
            held, length = [], 0
    if held:
        yield joint.join(held)


# --- Cleaning rules: the files of one package -> pieces --------------------------------------


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def clean_text(path: str, data: bytes) -> Iterator[Piece]:
    """Plain text, taken as it is."""
    yield from whole_file(path, decode(data))


def clean_code(path: str, data: bytes) -> Iterator[Piece]:
    """Program sources, without generated files: those say so near the top."""
    text = decode(data)
    generated = re.search(r"(?i)code generated|do not edit|auto(matically )?.?generated", text[:2000])
    if len(data) <= LARGEST_SOURCE_FILE and not generated:
        yield from whole_file(path, text)


class PageText(html.parser.HTMLParser):
    """The words of a page: a new line per block, nothing of menus, scripts and drawings."""

    BLOCKS = frozenset(
        "p div br li tr td th dt dd h1 h2 h3 h4 h5 h6 pre table ul ol dl blockquote "
        "section article title hr".split()
    )
    SILENT = frozenset("script style nav header footer aside noscript select button head svg".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = 0
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._edge(tag, +1)

    def handle_endtag(self, tag: str) -> None:
        self._edge(tag, -1)

    def _edge(self, tag: str, step: int) -> None:
        if tag in self.SILENT:
            self.silent = max(0, self.silent + step)
        if tag == "pre":
            self.preformatted = max(0, self.preformatted + step)
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            text = data if self.preformatted else re.sub(r"\s+", " ", data)
            at_line_start = not self.parts or self.parts[-1].endswith("\n")
            self.parts.append(text.lstrip(" ") if at_line_start and not self.preformatted else text)


def clean_html(path: str, data: bytes) -> Iterator[Piece]:
    page = PageText()
    page.feed(decode(data))
    yield from whole_file(path, "".join(page.parts))


ROFF_HEADINGS = frozenset("SH SS Sh Ss".split())
ROFF_BREAKS = frozenset("PP P LP Pp sp".split())
ROFF_ALTERNATING = frozenset("BR RB IR RI BI IB".split())
ROFF_INLINE = frozenset(
    "B I SM SB Nm Fl Ar Xr Em Sy Li Pa Nd Op Cm Va Fn Dv Ic IP TP It Dl Ql Dq".split()
)
ROFF_ESCAPES = {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`"}
ROFF_GLYPHS = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–",
    "bu": "•", "co": "©", "ha": "^", "ti": "~", "rs": "\\", "ga": "`", "Fo": "«", "Fc": "»",
    "->": "→", "<=": "≤", ">=": "≥", "mu": "×", "mc": "µ", "hy": "-", "bv": "|", "or": "|",
    "sh": "#", "at": "@", "Bq": "„", "fo": "‹", "fc": "›",
}  # fmt: skip


def roff_inline(line: str) -> str:
    """Resolve the escapes of one line: no fonts, sizes or motions; glyphs by their name."""
    line = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\s[-+]?\d+|\\m\[[^]]*\]|\\[vhkw]'[^']*'", "", line)
    glyph = lambda match: ROFF_GLYPHS.get(match[1] or match[2], "")
    line = re.sub(r"\\\*?\[([^]]*)\]|\\\*?\((..)", glyph, line)
    return re.sub(r"\\([^a-zA-Z*(\[]|[ec])", lambda match: ROFF_ESCAPES.get(match[1], ""), line)


def roff_line(line: str) -> str | None:
    """One line of a manual page as text; None if it is only there for the typesetter."""
    line = re.sub(r"\\\".*", "", line)
    request = re.match(r"[.']\s*([A-Za-z]+)\s*(.*)", line)
    if not request:
        return None if line[:1] in (".", "'") and len(line) < 3 else roff_inline(line)
    name, rest = request.groups()
    words = re.sub(r'(?<!\\)"', "", rest)
    if name in ROFF_HEADINGS:
        return "\n" + roff_inline(words)
    if name in ROFF_BREAKS:
        return ""
    if name in ROFF_ALTERNATING and '"' not in rest:  # .BR ls (1) is printed "ls(1)"
        return roff_inline(re.sub(r"(?<!\\) ", "", rest))
    if name in ROFF_INLINE or name in ROFF_ALTERNATING:
        return roff_inline(words)
    return None


def clean_manual(path: str, data: bytes) -> Iterator[Piece]:
    """Manual pages, both dialects (man and mdoc), without macro definitions."""
    lines = []
    in_definition = False
    for line in decode(data).splitlines():
        if in_definition:
            in_definition = not re.match(r"\.\.\s*$", line)
        elif re.match(r"[.']\s*(de|ig|am)\b", line):
            in_definition = True
        elif (text := roff_line(line)) is not None:
            lines.append(text)
    yield from whole_file(path, "\n".join(lines))


def clean_fortune(path: str, data: bytes) -> Iterator[Piece]:
    """Quotations, separated by lines that begin with %."""
    yield from in_chunks(path, re.split(r"(?m)^%.*\n", decode(data)), 1500, "\n\n")


def clean_wordnet(path: str, data: bytes) -> Iterator[Piece]:
    """WordNet's data files as dictionary entries: words (part of speech): gloss."""
    part_of_speech = path.rsplit(".", 1)[-1]
    entries = []
    for line in decode(data).splitlines():
        if line.startswith("  ") or "|" not in line:
            continue
        head, gloss = line.split("|", 1)
        fields = head.split()
        count = int(fields[3], 16)
        words = (word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        entries.append(f"{', '.join(words)} ({part_of_speech}): {gloss.strip()}")
    yield from in_chunks(path, entries, 2500, "\n")


def clean_gutenberg(path: str, data: bytes) -> Iterator[Piece]:
    """A book of Project Gutenberg, without the paragraphs that speak of the project."""
    paragraphs = decode(data).replace("\r\n", "\n").split("\n\n")
    legal = re.compile(r"(?i)gutenberg|e-?text|small print|copyright")
    yield from in_chunks(path, (p for p in paragraphs if not legal.search(p)), 4000, "\n\n")


def rdb_records(data: bytes) -> Iterator[bytes]:
    """The records of an R lazy-load database: a length of 4 bytes, then zlib, bzip2 or xz."""
    while len(data) > 5:
        kind = data[4:5]
        if kind == b"2":
            decoder, body = bz2.BZ2Decompressor(), data[5:]
        elif kind == b"Z":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            decoder, body = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters), data[5:]
        else:
            decoder, body = zlib.decompressobj(), data[4:]
        yield decoder.decompress(body)
        data = decoder.unused_data


def r_strings(record: bytes) -> list[str]:
    """The first character vector (type 16) of a serialised R object; strings are type 9."""
    start = record.find(b"\x00\x00\x00\x10")
    if start < 0:
        return []
    (count,) = struct.unpack_from(">i", record, start + 4)
    at, strings = start + 8, []
    for _ in range(count):
        if at + 8 > len(record):
            break
        flags, length = struct.unpack_from(">Ii", record, at)
        if flags & 255 != 9:
            break
        at += 8
        strings.append(record[at : at + max(length, 0)].decode("utf-8", "replace"))
        at += max(length, 0)
    return strings


def clean_rdb(path: str, data: bytes) -> Iterator[Piece]:
    """Books kept as R character vectors, one string per printed line."""
    for number, record in enumerate(rdb_records(data)):
        lines = r_strings(record)
        if len(lines) > 50:
            paragraphs = "\n".join(lines).split("\n\n")
            yield from in_chunks(f"{path}/{number}", paragraphs, 4000, "\n\n")


def sword_markup(text: str) -> str:
    """The words of a verse or comment, without notes and generated titles."""
    text = re.sub(r"(?s)<(note|title type=\"x-gen)[^>]*>.*?</\w+>", "", text)
    text = re.sub(r"</?(p|lg|l|lb|div|title|list|item)\b[^>]*>", "\n", text)
    text = re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]+>", "", text)))
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def sword_module(stem: str, files: dict[str, bytes]) -> Iterator[str]:
    """The verses of one SWORD module in order: `v` places each verse in a block, `s` each block
    in `z`."""
    index = files[stem + "s"]
    blocks = []
    for start, length, _ in struct.iter_unpack("<III", index[: len(index) // 12 * 12]):
        blocks.append(zlib.decompress(files[stem + "z"][start : start + length]) if length else b"")
    places = files[stem + "v"]
    fits = lambda width: len(places) % width == 0 and all(
        struct.unpack_from("<I", places, at)[0] < len(blocks) for at in range(0, len(places), width)
    )
    layout = next((f for f, width in (("<IIH", 10), ("<III", 12)) if fits(width)), None)
    if not blocks or layout is None:
        return
    last = None
    for block, start, length in struct.iter_unpack(layout, places):
        if length and (block, start) != last:  # linked verses name the same place
            yield sword_markup(blocks[block][start : start + length].decode("utf-8", "replace"))
        last = (block, start)


def clean_sword(files: dict[str, bytes]) -> Iterator[Piece]:
    for path in sorted(files):
        if re.search(r"\.[bc]zz$", path):
            yield from in_chunks(path, sword_module(path[:-1], files), 3000, "\n")


FILE_RULES: dict[str, Callable[[str, bytes], Iterator[Piece]]] = {
    "code": clean_code,
    "fortune": clean_fortune,
    "gutenberg": clean_gutenberg,
    "html": clean_html,
    "manual": clean_manual,
    "rdb": clean_rdb,
    "text": clean_text,
    "wordnet": clean_wordnet,
}
PACKAGE_RULES: dict[str, Callable[[dict[str, bytes]], Iterator[Piece]]] = {"sword": clean_sword}
ONE_DOCUMENT_PER_FILE = {"code", "html", "manual", "text"}


# --- What all documents have in common -------------------------------------------------------


def tidy(text: str) -> str:
    """No carriage returns, no spaces at line ends, at most one empty line in a row."""
    text = text.replace("\r\n", "\n").replace("\x00", "").replace("\f", "\n")
    text = re.sub(r"[ \t\u00a0]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def without_furniture(pieces: list[Piece], script: str | None) -> list[Piece]:
    """Drop lines that many files share (licences, footers) and lines left untranslated."""
    shared = collections.Counter(
        line for piece in pieces for line in set(piece.text.split("\n")) if len(line) >= 20
    )
    limit = max(10, 0.05 * len(pieces))
    untranslated = lambda line: script and len(line) > 40 and not re.search(script, line)
    keep = lambda line: shared[line] <= limit and not untranslated(line)
    return [
        dataclasses.replace(piece, text=tidy("\n".join(filter(keep, piece.text.split("\n")))))
        for piece in pieces
    ]


def cut(text: str) -> Iterator[str]:
    """Cut a long text at paragraph, line or word ends, whichever comes first in that order."""
    while len(text) > MAX_CHARS:
        ends = (text.rfind(mark, MAX_CHARS // 2, MAX_CHARS) for mark in ("\n\n", "\n", " "))
        end = next((e for e in ends if e > 0), MAX_CHARS)
        yield text[:end].strip("\n")
        text = text[end:].lstrip("\n")
    yield text


SCRIPTS = {"ru": ("[\u0400-\u04ff]", 0.3)}  # and the least share of such letters
FREQUENT = {
    "en": "the of and to is in that for with this are be it you or not can from which",
    "de": "der die und das ist nicht mit den ein eine zu von auf wird für sie dem oder werden im",
    "fr": "le la les de des est pour une un que dans et en pas du vous par sur ne ce",
}


def in_language(text: str, language: str) -> bool:
    """By script where that tells, else by which language's frequent words prevail."""
    if language in SCRIPTS:
        letters, share = SCRIPTS[language]
        return len(re.findall(letters, text)) > share * len(re.sub(r"\s", "", text))
    words = collections.Counter(re.findall(r"[^\W\d_]+", text.lower()))
    hits = {name: sum(words[w] for w in frequent.split()) for name, frequent in FREQUENT.items()}
    return hits[language] == max(hits.values()) and hits[language] >= 0.08 * words.total()


def is_prose_or_program(text: str, is_code: bool) -> bool:
    """No tables of numbers, no broken encodings, no rulers, no minified programs."""
    if len(text) < MIN_CHARS:
        return False
    count = collections.Counter(text)
    if sum(count[digit] for digit in "0123456789") > 0.25 * len(text):
        return False
    if count["\ufffd"] > 0.002 * len(text):
        return False
    if max(n for char, n in count.items() if not char.isspace()) > 0.25 * len(text):
        return False
    return not is_code or max(map(len, text.splitlines())) < 1000


def pieces_of(source: dict, files: dict[str, bytes]) -> list[Piece]:
    rule = source["clean"]
    if rule in PACKAGE_RULES:
        pieces = list(PACKAGE_RULES[rule](files))
    else:
        pieces = [piece for path, data in files.items() for piece in FILE_RULES[rule](path, data)]
    pieces = [dataclasses.replace(piece, text=tidy(piece.text)) for piece in pieces]
    if rule in ONE_DOCUMENT_PER_FILE:
        script = SCRIPTS.get(source.get("language", ""), (None,))[0]
        pieces = without_furniture(pieces, script)
    return pieces


def documents_of(source: dict, files: dict[str, bytes]) -> list[Document]:
    """The documents of one source, in their final order and up to the source's own cap."""
    package, language = source["package"], source.get("language")
    documents, seen = [], set()
    for piece in pieces_of(source, files):
        for number, text in enumerate(cut(piece.text)):
            if not is_prose_or_program(text, source["clean"] == "code"):
                continue
            if language and not in_language(text, language):
                continue
            if (mark := fingerprint(text)) in seen:
                continue
            seen.add(mark)
            name, unit = f"{package}:{piece.name}.{number}", f"{package}:{piece.unit}"
            documents.append(Document(name, unit, text))
    return capped(sorted(documents, key=lambda d: d.order), source.get("cap_mb"))


def fingerprint(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


def capped(documents: list[Document], cap_mb: float | None) -> list[Document]:
    """The first documents, up to the cap; in hash order they are a fair sample of all."""
    if cap_mb is None:
        return documents
    kept, size = [], 0
    for document in documents:
        size += document.size
        if size > cap_mb * 1e6:
            break
        kept.append(document)
    return kept


# --- Packages --------------------------------------------------------------------------------


def load_manifest(path: pathlib.Path) -> dict:
    try:
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CorpusError(f"cannot read manifest {path}: {error}") from error
    for source in manifest.get("source", []):
        name = source.get("package", "a source without package")
        if missing := MANIFEST_KEYS - source.keys():
            raise CorpusError(f"{path}: {name} lacks {', '.join(sorted(missing))}")
        if unknown := source.keys() - MANIFEST_KEYS - OPTIONAL_KEYS:
            raise CorpusError(f"{path}: {name} has unknown keys {', '.join(sorted(unknown))}")
        if source["clean"] not in FILE_RULES | PACKAGE_RULES:
            raise CorpusError(f"{path}: {name} asks for an unknown rule {source['clean']!r}")
        if source.get("language", "en") not in FREQUENT | SCRIPTS:
            raise CorpusError(f"{path}: {name} has an unknown language {source['language']!r}")
    if not manifest.get("source"):
        raise CorpusError(f"{path}: no sources")
    return manifest


def apt_download(specification: str, folder: pathlib.Path) -> tuple[pathlib.Path | None, str]:
    """The package file, or None and what apt said. Downloads into a folder of its own, so that
    an interrupted download is never taken for a package."""
    command = ["apt-get", "download", "-q", specification]
    if os.geteuid() == 0:  # apt's unprivileged user may not write to the cache
        command[1:1] = ["-o", "APT::Sandbox::User=root"]
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        try:
            run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise CorpusError("apt-get not found: fill the cache on a Debian machine") from error
        found = sorted(pathlib.Path(scratch).glob("*.deb"))
        if run.returncode or not found:
            return None, (run.stderr.strip().splitlines() or ["no package file came"])[-1]
        place = folder / found[0].name
        found[0].replace(place)
        return place, ""


def obtain(source: dict, cache: pathlib.Path) -> pathlib.Path:
    """The pinned package from the cache or from apt; else the current version, saying so."""
    package, pinned = source["package"], cache / source["file"]
    if not pinned.exists():
        say(f"download {package} {source['version']}, {source['bytes'] / 1e6:.1f} MB")
        path, _ = apt_download(f"{package}={source['version']}", cache)
        if path is None:
            path, complaint = newest_known(package, cache)
            if path is None:
                raise CorpusError(f"cannot download {package}: {complaint} (try apt-get update)")
        if path.name != pinned.name:
            say(f"WARNING: {pinned.name} cannot be had; {path.name} is used and the corpus differs")
            return path
    if sha256_of(pinned) != source["sha256"]:
        raise CorpusError(f"{pinned} has a wrong SHA-256: delete it and run again")
    return pinned


def newest_known(package: str, cache: pathlib.Path) -> tuple[pathlib.Path | None, str]:
    """What apt offers now or, without a network, another version that lies in the cache."""
    path, complaint = apt_download(package, cache)
    if path is None:
        path = max(cache.glob(f"{package}_*.deb"), key=lambda p: p.stat().st_mtime, default=None)
    return path, complaint


def unpack(source: dict, path: pathlib.Path) -> dict[str, bytes]:
    """The files of a package that the source asks for, by name, in order of their names."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            files = dict(wanted_members(source, archive))
        process.stdout.read()
    if process.returncode:
        raise CorpusError(f"{path} is not a sound Debian package")
    if not files:
        raise CorpusError(f"{path.name}: no file matches {source['glob']}")
    return dict(sorted(files.items()))


def wanted_members(source: dict, archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    matches = lambda name, globs: any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    for member in archive:
        name = member.name.removeprefix("./")
        if not member.isfile() or not matches(name, source["glob"]):
            continue
        if matches(name, source.get("exclude", [])):
            continue
        data = archive.extractfile(member).read()
        yield name, gzip.decompress(data) if name.endswith(".gz") else data


def version_of(path: pathlib.Path) -> str:
    command = ["dpkg-deb", "--field", path, "Version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# --- The corpus ------------------------------------------------------------------------------


def build_source(source: dict, path: pathlib.Path) -> list[Document]:
    return documents_of(source, unpack(source, path))


def build_domains(manifest: dict, paths: list[pathlib.Path], jobs: int) -> dict[str, list[Document]]:
    """Each domain's documents, without copies, in hash order, up to the domain's cap."""
    domains: dict[str, list[Document]] = {}
    seen: set[bytes] = set()
    sources = manifest["source"]
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for source, documents in zip(sources, pool.map(build_source, sources, paths)):
            fresh = []
            for document in documents:
                if (mark := fingerprint(document.text)) not in seen:
                    seen.add(mark)
                    fresh.append(document)
            domains.setdefault(source["domain"], []).extend(fresh)
            megabytes = sum(document.size for document in fresh) / 1e6
            say(f"clean {source['package']}: {len(fresh)} documents, {megabytes:.1f} MB")
    caps = manifest.get("domain_cap_mb", {})
    return {
        domain: capped(sorted(documents, key=lambda d: d.order), caps.get(domain))
        for domain, documents in domains.items()
    }


def write_splits(domains: dict[str, list[Document]], folder: pathlib.Path) -> dict:
    """Write the three files under temporary names; returns what corpus.json says of them."""
    lines: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    counts = {split: {} for split in SPLITS}
    for domain, documents in domains.items():
        for split in SPLITS:
            counts[split][domain] = {"documents": 0, "bytes": 0}
        for document in documents:
            split = split_of(document.unit)
            counts[split][domain]["documents"] += 1
            counts[split][domain]["bytes"] += document.size
            record = {"text": document.text, "domain": domain, "source": document.source}
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
            lines[split].append((document.order, line))
        for split in SPLITS:
            if not counts[split][domain]["documents"]:
                raise CorpusError(f"domain {domain} has no documents in {split}: give it more files")
    summary = {}
    for split, ordered in lines.items():
        data = "".join(line for _, line in sorted(ordered)).encode()
        write_atomically(folder / f"{split}.jsonl", data)
        summary[split] = {
            "documents": len(ordered),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "domains": counts[split],
        }
    return summary


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def packages_used(manifest: dict, paths: list[pathlib.Path]) -> list[dict]:
    return [
        {
            "package": source["package"],
            "domain": source["domain"],
            "version": version_of(path),
            "pinned": source["version"],
            "sha256": sha256_of(path),
            "licence": source["licence"],
        }
        for source, path in zip(manifest["source"], paths)
    ]


def recipe_of(manifest_path: pathlib.Path) -> dict:
    """What decides the bytes besides the packages; another recipe means another corpus."""
    return {
        "manifest_sha256": sha256_of(manifest_path),
        "builder_sha256": sha256_of(pathlib.Path(__file__)),
    }


def is_complete(folder: pathlib.Path, recipe: dict) -> bool:
    """True if the folder holds what this recipe made, unharmed."""
    try:
        report = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        return report["recipe"] == recipe and all(
            sha256_of(folder / f"{split}.jsonl") == report["splits"][split]["sha256"]
            for split in SPLITS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sha256_of(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def table(report: dict) -> str:
    """MB per domain and split, for people."""
    rows = [f"{'MB of text':14}" + "".join(f"{split:>12}" for split in SPLITS)]
    totals = collections.Counter()
    for domain in report["splits"]["train"]["domains"]:
        sizes = {s: report["splits"][s]["domains"][domain]["bytes"] / 1e6 for s in SPLITS}
        totals.update(sizes)
        rows.append(f"{domain:14}" + "".join(f"{sizes[split]:12.2f}" for split in SPLITS))
    rows.append(f"{'all':14}" + "".join(f"{totals[split]:12.2f}" for split in SPLITS))
    return "\n".join(rows)


def build(manifest_path: pathlib.Path, folder: pathlib.Path, cache: pathlib.Path, jobs: int) -> None:
    manifest, recipe = load_manifest(manifest_path), recipe_of(manifest_path)
    if is_complete(folder, recipe):
        say(f"{folder} is complete")
        return
    if not shutil.which("dpkg-deb"):
        raise CorpusError("dpkg-deb not found: install the package dpkg")
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.json").unlink(missing_ok=True)  # it vouches for the files; now they change
    paths = [obtain(source, cache) for source in manifest["source"]]
    domains = build_domains(manifest, paths, jobs)
    report = {
        "schema": 1,
        "recipe": recipe,
        "splits": write_splits(domains, folder),
        "packages": packages_used(manifest, paths),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomically(folder / "corpus.json", text.encode())
    say(table(report))
    say(f"{folder} written in {time.monotonic() - started:.0f} s")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(
        description="Download the Debian packages named in the manifest, clean their text and write "
        "train.jsonl, validation.jsonl, test.jsonl and corpus.json. Safe to run twice: finished "
        "work is kept.",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the corpus")
    parser.add_argument(
        "--cache", type=pathlib.Path, help="folder for package files (default: OUT/packages)"
    )
    parser.add_argument(
        "--manifest", type=pathlib.Path, default=here / "manifest.toml", help="default: %(default)s"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    cache = options.cache or options.out / "packages"
    try:
        build(options.manifest, options.out, cache, max(1, options.jobs))
    except (CorpusError, OSError) as error:
        say(f"build_corpus: {error}")
        return 1
    except KeyboardInterrupt:
        say("build_corpus: interrupted; run again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
