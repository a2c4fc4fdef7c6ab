#include "smalltalk/data/order_file.hpp"

#include <span>

#include "hdf5_file.hpp"
#include "provenance.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

constexpr const char* kDocuments = "documents";

bool has_each_once(std::span<const uint64_t> documents) {
  std::vector<bool> seen(documents.size());
  for (const uint64_t document : documents) {
    if (document >= seen.size() || seen[document]) return false;
    seen[document] = true;
  }
  return true;
}

}  // namespace

void write_order(const std::filesystem::path& path, const std::vector<uint64_t>& documents,
                 const Provenance& provenance) {
  ST_CHECK(has_each_once(documents));
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    Hdf5File file = Hdf5File::create(temporary, path);
    file.write_format(kOrderFormat);
    write_provenance(file, provenance);
    file.write_text_attribute("content_hash", hash_bytes(std::as_bytes(std::span(documents))));
    file.write<uint64_t>(kDocuments, documents);
    file.close();
  });
}

DocumentOrder read_order(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  file.require_format(kOrderFormat);
  DocumentOrder order;
  order.content_hash = file.text_attribute("content_hash");
  order.provenance = file.text_attributes();
  order.documents = file.read<uint64_t>(kDocuments);
  if (!has_each_once(order.documents)) {
    throw Error(path.string() + ": /documents does not name each document once; make it again");
  }
  return order;
}

}  // namespace smalltalk
