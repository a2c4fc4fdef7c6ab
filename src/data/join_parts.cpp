#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>

#include "pack_documents.hpp"
#include "part_file.hpp"
#include "prepare_source.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/token_writer.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

// A domain is a coarse label: tables and pages of more are of no use.
constexpr size_t kMostDomains = 1000;
constexpr int64_t kCopyTokens = int64_t{1} << 22;
const std::string kUnknownDomain = "unknown";

struct Totals {
  TokenFileInfo info;
  BadDocuments bad;
  std::vector<std::string> domains;  // "unknown", then the others in alphabetical order
  int64_t domains_found = 0;
};

std::string domain_name(const std::string& label) { return label.empty() ? kUnknownDomain : label; }

// The names of all, in alphabetical order: that of ranks and parts must not show. Of many, those
// with most documents.
std::vector<std::string> kept_domains(const std::map<std::string, int64_t>& documents) {
  std::vector<std::pair<int64_t, std::string>> by_size;  // negative: the largest first
  for (const auto& [name, count] : documents) by_size.emplace_back(-count, name);
  std::sort(by_size.begin(), by_size.end());
  by_size.resize(std::min(by_size.size(), kMostDomains));
  std::vector<std::string> names;
  for (auto& [count, name] : by_size) names.push_back(std::move(name));
  std::sort(names.begin(), names.end());
  return names;
}

Totals sum_up(const std::vector<PartInfo>& parts) {
  Totals totals;
  std::map<std::string, int64_t> documents;  // of each domain
  for (const PartInfo& part : parts) {
    totals.info.num_tokens += part.num_tokens;
    totals.info.num_documents += part.num_documents;
    totals.info.text_bytes += part.text_bytes;
    totals.bad.add(part.bad);
    for (size_t d = 0; d < part.domains.size(); ++d) {
      documents[domain_name(part.domains[d])] += part.domain_documents[d];
    }
  }
  documents.erase(kUnknownDomain);
  totals.domains_found = std::ssize(documents);
  totals.domains = kept_domains(documents);
  totals.domains.insert(totals.domains.begin(), kUnknownDomain);
  return totals;
}

template <typename T>
void copy_tokens(const std::filesystem::path& path, const PartInfo& part, TokenWriter& writer) {
  std::vector<T> buffer;
  for (int64_t at = 0; at < part.num_tokens; at += kCopyTokens) {
    stop_if_asked();
    buffer.resize(static_cast<size_t>(std::min(kCopyTokens, part.num_tokens - at)));
    read_part_values<T>(path, at * part.token_bytes, buffer);
    writer.add_tokens(std::span<const T>(buffer));
  }
}

// Where the documents of a part end in it.
std::vector<uint64_t> read_ends(const std::filesystem::path& path, const PartInfo& part) {
  std::vector<uint64_t> ends(static_cast<size_t>(part.num_documents));
  read_part_values<uint64_t>(path, part.num_tokens * part.token_bytes, ends);
  return ends;
}

std::vector<uint16_t> domains_of_part(const std::filesystem::path& path, const PartInfo& part,
                                      const std::map<std::string, uint16_t>& domains) {
  std::vector<uint32_t> labels(static_cast<size_t>(part.num_documents));
  read_part_values<uint32_t>(path, part.num_tokens * part.token_bytes + part.num_documents * 8,
                             labels);
  std::vector<uint16_t> index;
  for (const std::string& label : part.domains) {
    const auto found = domains.find(domain_name(label));
    index.push_back(found == domains.end() ? 0 : found->second);  // of the many others
  }
  std::vector<uint16_t> of_document;
  for (const uint32_t label : labels) {
    if (label >= index.size()) throw Error(path.string() + ": names a domain that it has not");
    of_document.push_back(index[label]);
  }
  return of_document;
}

void copy_documents(const std::filesystem::path& path, const PartInfo& part, uint64_t first_token,
                    const std::map<std::string, uint16_t>& domains, TokenWriter& writer) {
  std::vector<uint64_t> ends = read_ends(path, part);
  for (uint64_t& end : ends) end += first_token;
  writer.add_documents(ends, domains_of_part(path, part, domains));
}

// ---- Packed -------------------------------------------------------------------------------------

// What a text begins behind.
constexpr auto kEndOfNone = static_cast<uint32_t>(kEndToken);

// Every part begins and ends with a whole sequence.
std::vector<PackedDocument> packing_of(const std::vector<uint64_t>& ends, int64_t seq_length) {
  std::vector<int64_t> lengths;
  uint64_t begin = 0;
  for (const uint64_t end : ends) {
    lengths.push_back(static_cast<int64_t>(end - begin));
    begin = end;
  }
  return pack_documents(lengths, seq_length);
}

int64_t padding_of(const std::vector<std::filesystem::path>& part_files,
                   const std::vector<PartInfo>& parts, int64_t seq_length) {
  int64_t padding = 1;  // before the first document
  for (size_t i = 0; i < parts.size(); ++i) {
    for (const PackedDocument& document :
         packing_of(read_ends(part_files[i], parts[i]), seq_length)) {
      padding += document.padding;
    }
  }
  return padding;
}

template <typename T>
void copy_packed(const std::filesystem::path& path, const std::vector<uint64_t>& ends,
                 const std::vector<PackedDocument>& order, TokenWriter& writer) {
  std::ifstream in(path, std::ios::binary);
  std::vector<T> tokens;
  for (const auto& [document, padding] : order) {
    stop_if_asked();
    const auto at = static_cast<size_t>(document);
    const uint64_t begin = at == 0 ? 0 : ends[at - 1];
    tokens.resize(ends[at] - begin);
    in.seekg(static_cast<std::streamoff>(begin * sizeof(T)));
    if (!in.read(reinterpret_cast<char*>(tokens.data()),
                 static_cast<std::streamsize>(tokens.size() * sizeof(T)))) {
      throw Error(path.string() + ": cannot be read; run the same command again");
    }
    tokens.insert(tokens.end(), static_cast<size_t>(padding), static_cast<T>(kEndToken));
    writer.add_tokens(std::span<const T>(tokens));
  }
}

// -> the number of tokens written.
uint64_t pack_part(const std::filesystem::path& path, const PartInfo& part, int64_t seq_length,
                   uint64_t first_token, const std::map<std::string, uint16_t>& domains,
                   TokenWriter& writer) {
  const std::vector<uint64_t> ends = read_ends(path, part);
  const std::vector<uint16_t> domain = domains_of_part(path, part, domains);
  const std::vector<PackedDocument> order = packing_of(ends, seq_length);
  if (part.token_bytes == 2) {
    copy_packed<uint16_t>(path, ends, order, writer);
  } else {
    copy_packed<uint32_t>(path, ends, order, writer);
  }
  std::vector<uint64_t> packed_ends;
  std::vector<uint16_t> packed_domains;
  uint64_t end = first_token;
  for (const auto& [document, padding] : order) {
    const auto at = static_cast<size_t>(document);
    end += ends[at] - (at == 0 ? 0 : ends[at - 1]) + static_cast<uint64_t>(padding);
    packed_ends.push_back(end);
    packed_domains.push_back(domain[at]);
  }
  writer.add_documents(packed_ends, packed_domains);
  return end - first_token;
}

// Each file of the inputs by its content.
std::vector<std::string> contents_of(const std::vector<std::vector<InputPart>>& bundles,
                                     const std::vector<PartInfo>& parts, size_t num_files) {
  std::vector<std::vector<uint64_t>> hashes(num_files);
  std::vector<int64_t> sizes(num_files);
  for (size_t i = 0; i < bundles.size(); ++i) {
    for (size_t k = 0; k < bundles[i].size(); ++k) {
      const auto file = static_cast<size_t>(bundles[i][k].file);
      const std::vector<uint64_t>& more = parts[i].sources.at(k);
      hashes[file].insert(hashes[file].end(), more.begin(), more.end());
      sizes[file] = bundles[i][k].end;
    }
  }
  std::vector<std::string> contents;
  for (size_t file = 0; file < num_files; ++file) {
    contents.push_back(content_of(sizes[file], hashes[file]));
  }
  return contents;
}

}  // namespace

void join_parts(const PrepareOptions& options, const std::vector<std::filesystem::path>& part_files,
                const std::vector<std::vector<InputPart>>& bundles, const Tokenizer& tokenizer,
                const InputFiles& inputs) {
  std::vector<PartInfo> parts;
  for (const std::filesystem::path& path : part_files) {
    std::optional<PartInfo> part = read_part_info(path);
    if (!part) throw Error(path.string() + ": missing or damaged; run the same command again");
    parts.push_back(std::move(*part));
  }
  Totals totals = sum_up(parts);
  refuse_bad_documents(totals.bad, options.max_bad_fraction);
  if (totals.info.num_documents == 0) throw Error("the inputs hold no documents");
  if (totals.domains_found > std::ssize(totals.domains) - 1) {  // without "unknown"
    log_warning(fmt::format(
        "{} different domains: the {} with most documents keep their names, all others are \"{}\" "
        "(data.domain_key names the field; empty, none is read)",
        totals.domains_found, kMostDomains, kUnknownDomain));
  }
  std::map<std::string, uint16_t> domains;
  for (const std::string& name : totals.domains) {
    domains.emplace(name, static_cast<uint16_t>(domains.size()));
  }
  totals.info.vocab_size = tokenizer.vocab_size();
  totals.info.tokenizer_hash = tokenizer.hash();
  totals.info.end_token = kEndToken;
  if (options.packed_length > 0) {
    totals.info.padding = padding_of(part_files, parts, options.packed_length);
    totals.info.num_tokens += totals.info.padding;
    log_info(fmt::format("{}: {:.1f} % of the tokens are padding", options.out.string(),
                         100.0 * static_cast<double>(totals.info.padding) /
                             static_cast<double>(totals.info.num_tokens)));
  }
  write_atomically(options.out, [&](const std::filesystem::path& temporary) {
    TokenWriter writer(temporary, options.out, totals.info, totals.domains);
    uint64_t first_token = 0;
    if (options.packed_length > 0) {
      writer.add_tokens(std::array{kEndOfNone});
      first_token = 1;
    }
    for (size_t i = 0; i < parts.size(); ++i) {
      require_whole(part_files[i], parts[i]);
      if (options.packed_length > 0) {
        first_token +=
            pack_part(part_files[i], parts[i], options.packed_length, first_token, domains, writer);
        continue;
      }
      if (parts[i].token_bytes == 2) {
        copy_tokens<uint16_t>(part_files[i], parts[i], writer);
      } else {
        copy_tokens<uint32_t>(part_files[i], parts[i], writer);
      }
      copy_documents(part_files[i], parts[i], first_token, domains, writer);
      first_token += static_cast<uint64_t>(parts[i].num_tokens);
    }
    writer.add_text("fields", to_text(options));
    if (options.packed_length > 0) {
      writer.add_integer("packed_length", options.packed_length);
      writer.add_integer("padding", totals.info.padding);
    }
    writer.add_list("sources", contents_of(bundles, parts, inputs.files.size()));
    writer.add_integer("documents_read", totals.bad.documents);
    writer.add_integer("bad_utf8", totals.bad.bad_utf8);
    writer.add_integer("empty", totals.bad.empty);
    writer.add_integer("broken_json", totals.bad.broken_json);
    writer.add_list("bad_examples", totals.bad.examples);
    writer.add_list("bent", to_lines(totals.bad.bent));
    writer.add_list("left_out", to_lines(inputs.left_out));
    writer.finish();
  });
}

}  // namespace smalltalk
