// A trained mixture as folders that other programs load: each model with its tokenizer as
// Hugging Face's transformers wants it, and a lock file that says what belongs together.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// Writes OUT/experts/<e>, OUT/routers/<e>, OUT/baselines/...: config.json, model.safetensors,
// tokenizer.json, tokenizer_config.json; OUT/lory, which also holds the modeling_lory.py by which
// transformers computes it; and OUT/mixture.json, which names every part by hash. All of it or, in
// case of an Error, nothing: it is made in OUT.partial, which is then renamed.
//
// If merge_for names text (files, folders, globs, as the experiment names it), also
// OUT/lory-merged: the Lory model as a plain one, whose experts are merged once, in each layer by
// the mean of the weights that scoring this text merges them by. The text is cut into sequences as
// it lies, document behind document, and the mean is over all of their segments but the first of
// each, which weighs all alike.
// Errors: OUT exists; a model is missing; the mixture does not belong together; its tokenizer is of
// a recipe whose ids transformers cannot repeat; merge_for, and there is no Lory model, or less
// than one sequence of text.
void export_mixture(const Run& run, const std::filesystem::path& out,
                    const std::vector<std::string>& merge_for = {});

}  // namespace smalltalk
