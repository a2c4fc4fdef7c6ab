// A trained mixture as folders that other programs load: each model with its tokenizer as
// Hugging Face's transformers wants it, and a lock file that says what belongs together.
#pragma once

#include <filesystem>

#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// Writes OUT/experts/<e>, OUT/routers/<e>, OUT/baselines/...: config.json, model.safetensors,
// tokenizer.json, tokenizer_config.json; OUT/lory, which also holds the modeling_lory.py by which
// transformers computes it; and OUT/mixture.json, which names every part by hash. All of it or, in
// case of an Error, nothing: it is made in OUT.partial, which is then renamed.
// Errors: OUT exists; a model is missing; the mixture does not belong together; its tokenizer is of
// a recipe whose ids transformers cannot repeat.
void export_mixture(const Run& run, const std::filesystem::path& out);

}  // namespace smalltalk
