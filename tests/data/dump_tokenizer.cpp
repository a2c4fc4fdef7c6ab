// For tests/data/test_peer_tokenizer.py: dump_tokenizer TEXT VOCABULARY FOLDER trains a tokenizer,
// writes it into FOLDER as transformers reads it, and prints the ids of the texts on stdin (JSON).
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "smalltalk/core/system/files.hpp"
#include "smalltalk/data/tokenizer.hpp"

int main(int argc, char** argv) {
  using namespace smalltalk;
  if (argc != 4) return 2;
  const std::filesystem::path folder = argv[3], model = folder / "tokenizer.model";
  train_tokenizer({argv[1]}, std::atoll(argv[2]), 10'000'000, model);
  write_text_atomically(folder / "tokenizer.json", tokenizer_json(model));
  write_text_atomically(folder / "tokenizer_config.json", tokenizer_config_json(128));
  const Tokenizer tokenizer(model);
  nlohmann::json ids;
  for (const auto& text : nlohmann::json::parse(std::cin)) {
    ids.push_back(tokenizer.encode(text.get<std::string>()));
  }
  std::cout << ids.dump() << "\n";
  return 0;
}
