// The file by which transformers computes Lory models.
#pragma once

namespace smalltalk {

extern const char* const kModelingLory;  // modeling_lory.py

}  // namespace smalltalk
