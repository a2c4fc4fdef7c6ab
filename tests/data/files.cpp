#include "files.hpp"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <random>

namespace smalltalk::test {

std::filesystem::path write_gzip(const std::filesystem::path& path, std::string_view bytes) {
  gzFile file = gzopen(path.c_str(), "wb");
  gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
  gzclose(file);
  return path;
}

std::filesystem::path write_zstd(const std::filesystem::path& path, std::string_view bytes) {
  const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(),
                                                                   ZSTD_freeCCtx);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  out.resize(ZSTD_compress2(context.get(), out.data(), out.size(), bytes.data(), bytes.size()));
  return write_bytes(path, out);
}

std::filesystem::path gzip_of_zeros(const std::filesystem::path& path, int64_t count) {
  const std::string piece(1 << 20, '0');
  gzFile file = gzopen(path.c_str(), "wb");
  for (int64_t left = count; left > 0; left -= 1 << 20) {
    gzwrite(file, piece.data(), static_cast<unsigned>(std::min<int64_t>(left, 1 << 20)));
  }
  gzclose(file);
  return path;
}

std::filesystem::path zstd_of_zeros(const std::filesystem::path& path, int64_t count) {
  const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(),
                                                                   ZSTD_freeCCtx);
  const std::string piece(1 << 20, '0');
  std::string out(1 << 20, '\0');
  ZSTD_outBuffer output{out.data(), out.size(), 0};
  for (int64_t left = count; left > 0; left -= 1 << 20) {
    ZSTD_inBuffer input{piece.data(), static_cast<size_t>(std::min<int64_t>(left, 1 << 20)), 0};
    const bool last = left <= 1 << 20;
    while (ZSTD_compressStream2(context.get(), &output, &input,
                                last ? ZSTD_e_end : ZSTD_e_continue) > 0 &&
           (last || input.pos < input.size)) {
    }
  }
  return write_bytes(path, std::string_view(out).substr(0, output.pos));
}

std::vector<std::string> made_up_documents(int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](uint64_t n) { return random() % n; };
  const std::vector<std::string> syllables = {"ka", "to", "mi",   "ren", "sol", "ü", "pra", "den",
                                              "lo", "vi", "ster", "an",  "qu",  "é", "ba",  "x"};
  std::vector<std::string> words;
  for (int i = 0; i < 600; ++i) {
    std::string word;
    for (uint64_t j = 0, size = 1 + below(4); j < size; ++j) word += syllables[below(16)];
    words.push_back(word);
  }
  std::vector<std::string> documents;
  for (int i = 0; i < count; ++i) {
    std::string text;
    for (uint64_t j = 0, size = 5 + below(60); j < size; ++j) {
      const uint64_t kind = below(20);
      text += kind == 0   ? "\n"
              : kind == 1 ? "  "
              : kind == 2 ? ", " + std::to_string(below(5000)) + " "
                          : " ";
      text += words[below(600) * below(600) / 600];
    }
    documents.push_back(text);
  }
  return documents;
}

std::string json_lines(const std::vector<std::string>& texts, const std::string& domain) {
  std::string lines;
  for (const std::string& text : texts) {
    lines += "{\"text\": \"";
    for (const char c : text) {
      if (c == '\n') {
        lines += "\\n";
      } else {
        if (c == '"' || c == '\\') lines += '\\';
        lines += c;
      }
    }
    lines += domain.empty() ? "\"}\n" : "\", \"domain\": \"" + domain + "\"}\n";
  }
  return lines;
}

}  // namespace smalltalk::test
