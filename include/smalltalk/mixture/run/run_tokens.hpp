// The tokens of a run: made once by all ranks together, checked whenever they are opened.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// What can be known of the text before anything is made of it. Error naming the key: a split
// without tokens whose inputs are not there or are no text, a tokenizer that cannot be read.
void require_text(const Run& run);
// Makes the tokenizer and the three token files, those that are missing; of the others the text
// must be what it was (see PrepareOptions::verify), if it is there. Collective.
void prepare_tokens_of(const Run& run, const HostCollectives& ranks, bool verify = false);
// Makes tokens of other text, RUN/tokens/NAME.h5, for models to be compared on. Collective. Error:
// a name that is no good for a file, or one of the three splits; the tokens there are of other
// text.
void prepare_text(const Run& run, const std::string& name, const std::vector<std::string>& files,
                  const HostCollectives& ranks);

// Error: the split's tokens are not there, of another tokenizer, or less than one sequence.
void require_split(const Run& run, const std::string& split);
// Error: a token file is not there, they are not of one tokenizer, or the corpus is too small.
void require_tokens(const Run& run);
// The training tokens, in the order of the run. Error: that is not made yet, or of other tokens.
std::shared_ptr<const TokenFile> training_tokens(const Run& run);
// Opens the training tokens, with these checks; sets vocab_size and provenance.
void open_tokens(Run& run);

}  // namespace smalltalk
