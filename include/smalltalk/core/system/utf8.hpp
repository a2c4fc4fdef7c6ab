// UTF-8: whether a byte goes on with the character of the byte before it.
#pragma once

namespace smalltalk {

inline bool continues_character(char byte) {
  return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

}  // namespace smalltalk
