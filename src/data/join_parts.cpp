#include <algorithm>
#include <set>

#include "part_file.hpp"
#include "prepare_source.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/token_writer.hpp"
#include "token_format.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kCopyTokens = int64_t{1} << 22;
const std::string kUnknownDomain = "unknown";

struct Totals {
  TokenFileInfo info;
  BadDocuments bad;
  std::vector<std::string> domains;  // "unknown", then the others in alphabetical order
};

std::string domain_name(const std::string& label) { return label.empty() ? kUnknownDomain : label; }

Totals sum_up(const std::vector<PartInfo>& parts) {
  Totals totals;
  std::set<std::string> names;  // sorted: the order of ranks and parts must not show
  for (const PartInfo& part : parts) {
    totals.info.num_tokens += part.num_tokens;
    totals.info.num_documents += part.num_documents;
    totals.info.text_bytes += part.text_bytes;
    totals.bad.add(part.bad);
    for (const std::string& label : part.domains) names.insert(domain_name(label));
  }
  names.erase(kUnknownDomain);
  totals.domains = {kUnknownDomain};
  totals.domains.insert(totals.domains.end(), names.begin(), names.end());
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

void copy_documents(const std::filesystem::path& path, const PartInfo& part, uint64_t first_token,
                    const std::vector<std::string>& domains, TokenWriter& writer) {
  std::vector<uint64_t> ends(static_cast<size_t>(part.num_documents));
  std::vector<uint16_t> labels(ends.size());
  const int64_t offset = part.num_tokens * part.token_bytes;
  read_part_values<uint64_t>(path, offset, ends);
  read_part_values<uint16_t>(path, offset + part.num_documents * 8, labels);
  std::vector<uint16_t> index;
  for (const std::string& label : part.domains) {
    const auto found = std::find(domains.begin(), domains.end(), domain_name(label));
    index.push_back(static_cast<uint16_t>(found - domains.begin()));
  }
  for (uint64_t& end : ends) end += first_token;
  for (uint16_t& label : labels) {
    if (label >= index.size()) throw Error(path.string() + ": names a domain that it has not");
    label = index[label];
  }
  writer.add_documents(ends, labels);
}

}  // namespace

void join_parts(const PrepareOptions& options, const std::vector<std::filesystem::path>& part_files,
                int64_t vocab_size, const std::string& tokenizer_hash, const std::string& source) {
  std::vector<PartInfo> parts;
  for (const std::filesystem::path& path : part_files) {
    std::optional<PartInfo> part = read_part_info(path);
    if (!part) throw Error(path.string() + ": missing or damaged; run the same command again");
    parts.push_back(std::move(*part));
  }
  Totals totals = sum_up(parts);
  refuse_bad_documents(totals.bad, options.max_bad_fraction);
  if (totals.info.num_documents == 0) throw Error("the inputs hold no documents");
  if (totals.domains.size() > 65536) throw Error("more than 65535 different domains");
  totals.info.vocab_size = vocab_size;
  totals.info.tokenizer_hash = tokenizer_hash;
  totals.info.end_token = kEndToken;
  write_atomically(options.out, [&](const std::filesystem::path& temporary) {
    TokenWriter writer(temporary, options.out, totals.info, totals.domains);
    uint64_t first_token = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      require_whole(part_files[i], parts[i]);
      if (parts[i].token_bytes == 2) {
        copy_tokens<uint16_t>(part_files[i], parts[i], writer);
      } else {
        copy_tokens<uint32_t>(part_files[i], parts[i], writer);
      }
      copy_documents(part_files[i], parts[i], first_token, totals.domains, writer);
      first_token += static_cast<uint64_t>(parts[i].num_tokens);
    }
    writer.add_text("source_hash", source);
    writer.add_integer("documents_read", totals.bad.documents);
    writer.add_integer("bad_utf8", totals.bad.bad_utf8);
    writer.add_integer("empty", totals.bad.empty);
    writer.add_integer("broken_json", totals.bad.broken_json);
    writer.add_list("bad_examples", totals.bad.examples);
    writer.finish();
  });
}

}  // namespace smalltalk
