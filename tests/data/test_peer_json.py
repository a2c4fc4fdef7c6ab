"""Documents as Python's json, gzip and codecs read them."""
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

DUMP = os.path.join(os.environ["SMALLTALK_BUILD_DIR"], "tests/data/dump_documents")
BOM = "\ufeff"
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)


def read(content, name="a.jsonl", text_key="text", domain_key="domain", *more):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(content)
        done = subprocess.run([DUMP, path, text_key, domain_key, *more], check=True,
                              capture_output=True)
    return json.loads(done.stdout)


def at(value, path):
    """The field of that name; else, of "a.b", b in a."""
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    parts = path.split(".")
    found = (at(value.get(".".join(parts[:i])), ".".join(parts[i:])) for i in range(1, len(parts)))
    return next((one for one in found if one is not None), None)


def expected(content, text_key="text", domain_key="domain"):
    """[text, domain] of each line that Python takes for an object with a text."""
    documents = []
    for line in content.decode().split("\n"):
        line = line.removesuffix("\r").removeprefix(BOM)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        text, domain = at(value, text_key), at(value, domain_key)
        if isinstance(text, str) and text.strip(" \t\n\r\v\f"):
            documents.append([text, domain if isinstance(domain, str) else ""])
    return documents


class PeerJson(unittest.TestCase):
    def same(self, content, count, *keys):
        """As Python reads it, which is so many documents; what was bent."""
        found = read(content, "a.jsonl", *keys)
        self.assertEqual(found["documents"], expected(content, *keys))
        self.assertEqual(len(found["documents"]), count, found)
        return found["bent"]

    def test_numbers(self):
        self.assertEqual(self.same(b'{"text": "a b", "quality": NaN}\n'
                                   b'{"x": -Infinity, "text": "NaN"}\n'
                                   b'{"text": "c", "x": [Infinity, {"y": NaN}], "z": 1e5}\n', 3),
                         {"NaN or Infinity": 3})
        self.assertEqual(self.same(b'{"text": "a b", "id": 18446744073709551616}\n'
                                   b'{"text": "c", "id": -9223372036854775809}\n'
                                   b'{"text": "d", "id": [1e400, -1e400]}\n'
                                   b'{"text": "e", "id": ' + b"7" * 5000 + b'}\n', 4),
                         {"number beyond 64 bits": 4})
        self.assertEqual(self.same(b'{"text": "a", "id": 18446744073709551615, "x": 1e-400}\n'
                                   b'{"text": "b", "id": -9223372036854775808}\n', 2), {})
        # What is no number anywhere stays broken; so does what is broken elsewhere, too.
        self.assertEqual(self.same(b'{"text": "a", "x": nan}\n{"text": "b", "x": +1}\n'
                                   b'{"text": "c", "x": 01}\n{"text": "d", "x": .5}\n'
                                   b'{"text": "e", "x": 1.}\n{"text": "f", "x": -NaN}\n'
                                   b'{"text": "g", "x": NaN\n{"text": "h", "x": 1e}\n'
                                   b'{"text": "i", "x": NaNNaN}\n{NaN: 1, "text": "j"}\n', 0), {})

    def test_texts_stay_as_they_are(self):
        text = r"NaN 99999999999999999999 \\\" Infinity \\"
        line = json.dumps({"text": text, "x": float("nan"), text: 10 ** 30}).encode()
        self.same(line + b"\n", 1)

    def test_byte_order_marks_and_line_ends(self):
        mark = BOM.encode()
        self.assertEqual(self.same(mark + b'{"text":"a"}\n' + mark + b'{"text":"b"}\n', 2),
                         {"byte order mark": 2})
        self.assertEqual(self.same(b'{"text":"a\\r"}\r\n\r\n{"text":"b"}\r\n{"text":"c"}', 3),
                         {"CRLF": 2})
        found = read(mark + mark + b'{"text":"a"}\n')  # as two programs in a row write it
        self.assertEqual((found["documents"], found["bent"]), ([["a", ""]], {"byte order mark": 1}))

    def test_the_last_of_two_fields_counts(self):
        self.assertEqual(self.same(b'{"text":"a","text":"b","domain":"x"}\n'
                                   b'{"text":"a","domain":"x","domain":"y"}\n'
                                   b'{"text":"a","text":null}\n', 2), {"field named twice": 3})

    def test_fields_by_name(self):
        lines = (b'{"content": "a", "meta": {"set": "web", "x": {"y": "deep"}}}\n'
                 b'{"raw.content": "b", "content": 1}\n{"meta": [1], "content": "c"}\n'
                 b'{"text": "d"}\n')
        self.same(lines, 2, "content", "meta.set")
        self.same(lines, 1, "meta.x.y", "content")
        self.same(lines, 1, "raw.content", "domain")
        dots = (b'{"a.b": {"c": "x"}}\n{"a": {"b.c": "y"}}\n{"a": {"b": {"c": "z"}}}\n'
                b'{"a": {"d": 1}, "a.b": {"c": "w"}}\n{"a.b.c": "v", "a": {"b": {"c": "u"}}}\n')
        self.same(dots, 5, "a.b.c", "domain")
        found = read(lines, "a.jsonl", "content", "")
        self.assertEqual([domain for _, domain in found["documents"]], ["", ""])
        self.assertIn('no string "content"', found["examples"][0])

    def test_domains_that_are_no_texts(self):
        lines = b'{"text":"a","domain":3}\n{"text":"b","domain":["x"]}\n{"text":"c","domain":null}\n'
        self.assertEqual(self.same(lines, 3), {"domain that is no text": 2})

    def test_an_array_on_a_line(self):
        found = read(b'[{"text":"a"}]\n{"text":"b"}\n')
        self.assertEqual(found["broken_json"], 1)
        self.assertIn(".json file", found["examples"][0])

    def test_any_json(self):
        source = random.Random(3)
        pieces = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 25, "0", "-1.5e3", "true", "null",
                  '"x"', '"\\\\"', '"\\""', '"NaN"', "[]", "{}", "nan", "01", "", "[NaN,", "]", "}",
                  '{"text":"inner"}']

        def value(depth):
            kind = source.randrange(8)
            if depth > 3 or kind > 2:
                return source.choice(pieces)
            inner = [value(depth + 1) for _ in range(source.randrange(4))]
            if kind == 0:
                return "[" + ", ".join(inner) + "]"
            return "{" + ",".join(f'"{source.choice("abct")}":{v}' for v in inner) + "}"
        lines = []
        for i in range(20000):
            fields = [f'"k{source.randrange(3)}": {value(0)}' for _ in range(source.randrange(4))]
            fields.insert(source.randrange(len(fields) + 1), f'"text": "t{i}"')
            lines.append("{" + ", ".join(fields) + "}" + source.choice(["", " ", "\r", "x", " NaN"]))
        content = "\n".join(lines).encode()
        found = read(content)
        wanted = expected(content)
        self.assertEqual(found["documents"], wanted)
        self.assertGreater(len(wanted), 5000)
        self.assertLess(len(wanted), 15000)
        self.assertEqual(found["read"], len(lines))

    def test_values_over_many_lines(self):
        source = random.Random(5)
        pieces = ["[", "]", "{", "}", '"', "\\", ",", "\n", "\u00e9", "a", " "]

        def text():
            return "".join(source.choice(pieces) for _ in range(12)) + "."
        values = [{"text": text(), "domain": text(), "x": [1, {"y": text()}, [], {}]}
                  for _ in range(3000)]
        values[7]["x"] = float("nan")
        wanted = [[value["text"], value["domain"]] for value in values]
        array = json.dumps(values, indent=2)
        one_by_one = "\n".join(json.dumps(value, indent=1, ensure_ascii=False) for value in values)
        for content in (array, json.dumps(values), " \n\r\n" + array, BOM + array + "\n\n",
                        one_by_one, BOM + one_by_one, array + "\n" + array):
            content = content.encode()
            for name, packed in (("a.json", content), ("a.json.gz", gzip.compress(content))):
                found = read(packed, name)
                twice = 2 if content.count(b"NaN") == 2 else 1
                self.assertEqual(found["documents"], wanted * twice)
                self.assertEqual(found["read"], len(values) * twice)
                self.assertEqual(found["bent"].pop("NaN or Infinity"), twice)
                self.assertEqual(found["bent"], {"byte order mark": 1} if BOM.encode() in content
                                 else {})

    def test_elements_that_are_no_documents(self):
        found = read(b'[\n{"text": "a"}, 7, "{", [1, [2]],\n{"text" "b"}, null,\n'
                     b'{"text": "\xff"}, {"text": "c"}\n]\n', "a.json")
        self.assertEqual([text for text, _ in found["documents"]], ["a", "c"])
        self.assertEqual((found["read"], found["bad_utf8"]), (8, 1))
        self.assertIn("a.json:4: not UTF-8", [example[example.rindex("a.json"):]
                                              for example in found["examples"]])
        self.assertEqual(read(b"[]", "a.json")["read"], 0)
        for content, place in ((b'[\n{"text": "a"},\n{"text": "b"', "3: the file ends in the value"),
                               (b'\n[{"text": "a"}\n', "2: the file ends in the array"),
                               (b'[{"text": "a"}]\n]', "2: a ']' that closes nothing"),
                               (b'{\n"text": "a"}}', "2: a '}' that closes nothing")):
            with self.assertRaises(subprocess.CalledProcessError) as failed:
                read(content, "a.json")
            self.assertIn("a.json:" + place, failed.exception.stderr.decode())

    def test_zeros_behind_gzip(self):
        one, two = gzip.compress(b'{"text":"a"}\n'), gzip.compress(b'{"text":"b"}\n')
        for content in (one + bytes(512), one + bytes(3) + two, one + two + bytes(1 << 20)):
            found = read(content, "a.jsonl.gz")
            with tempfile.NamedTemporaryFile() as file:
                file.write(content)
                file.flush()
                with gzip.open(file.name) as lines:
                    self.assertEqual(found["documents"], expected(lines.read()))
            self.assertEqual(found["bent"], {"zeros behind the compressed stream": 1})
        with self.assertRaises(subprocess.CalledProcessError):
            read(one + bytes(512) + b"x", "a.jsonl.gz")

    def test_text_by_lines(self):
        content = BOM.encode() + b'one\r\n\n  \n two \n{"text": 3}\n\xc3\xa9\n\xff\nlast'
        found = read(content, "a.txt", "text", "domain", "lines")
        self.assertEqual([text for text, _ in found["documents"]],
                         ["one", " two ", '{"text": 3}', "\u00e9", "last"])
        self.assertEqual((found["read"], found["bad_utf8"]), (6, 1))
        self.assertEqual(found["bent"], {"byte order mark": 1, "CRLF": 1})
        self.assertTrue(found["examples"][0].endswith("a.txt:7: not UTF-8"))
        self.assertEqual(len(read(content, "a.txt")["documents"]), 0)


if __name__ == "__main__":
    unittest.main()
