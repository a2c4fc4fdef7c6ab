// What is read of one file, as JSON: dump_documents FILE TEXT_KEY DOMAIN_KEY [lines]
#include <iostream>
#include <nlohmann/json.hpp>

#include "smalltalk/data/documents.hpp"

int main(int argc, char** argv) {
  using namespace smalltalk;
  if (argc < 4) return 2;
  const DocumentFields fields{argv[2], argv[3], argc > 4};
  nlohmann::json documents = nlohmann::json::array();
  const BadDocuments bad = read_documents(
      argv[1],
      [&](const Document& document) {
        documents.push_back({std::string(document.text), std::string(document.domain)});
      },
      fields);
  std::cout << nlohmann::json{
      {"documents", documents}, {"read", bad.documents},          {"bad_utf8", bad.bad_utf8},
      {"empty", bad.empty},     {"broken_json", bad.broken_json}, {"examples", bad.examples},
      {"bent", bad.bent}};
}
