#include "byte_reader.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

class PlainReader {
 public:
  explicit PlainReader(const std::filesystem::path& path, int64_t offset = 0) : path_(path) {
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0 || (offset > 0 && ::lseek(file_, offset, SEEK_SET) < 0)) {
      const int reason = errno;
      if (file_ >= 0) ::close(file_);  // no destructor runs for a constructor that throws
      errno = reason;
      fail();
    }
    ::posix_fadvise(file_, offset, 0, POSIX_FADV_SEQUENTIAL);
  }
  ~PlainReader() { ::close(file_); }
  PlainReader(const PlainReader&) = delete;
  PlainReader& operator=(const PlainReader&) = delete;

  size_t read(std::span<char> out) {
    while (true) {
      const ssize_t got = ::read(file_, out.data(), out.size());
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) fail();
    }
  }

 private:
  [[noreturn]] void fail() {
    throw Error(path_.string() + ": cannot be read: " + std::strerror(errno));
  }
  std::filesystem::path path_;
  int file_ = -1;
};

class GzipReader {
 public:
  GzipReader(const std::filesystem::path& path, bool* padded)
      : path_(path), file_(path), padded_(padded) {
    constexpr int kGzipOnly = 16;
    ST_CHECK(inflateInit2(&stream_, MAX_WBITS + kGzipOnly) == Z_OK);
  }
  ~GzipReader() { inflateEnd(&stream_); }
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;

  // Not zlib's gzread(): it takes a damaged member for the end of the file.
  size_t read(std::span<char> out) {
    const size_t size = std::min<size_t>(out.size(), size_t{1} << 30);
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(size);
    while (stream_.avail_out == size) {
      if (stream_.avail_in == 0) {
        const size_t got = file_.read(buffer_);
        if (got == 0) {
          if (in_member_) fail("it ends too early");
          return 0;
        }
        stream_.next_in = reinterpret_cast<Bytef*>(buffer_.data());
        stream_.avail_in = static_cast<uInt>(got);
      }
      if (!in_member_ && skip_padding()) continue;
      if (!in_member_) inflateReset(&stream_);
      const int code = inflate(&stream_, Z_NO_FLUSH);
      in_member_ = code != Z_STREAM_END;
      if (in_member_ && code != Z_OK && code != Z_BUF_ERROR) {
        fail(stream_.msg == nullptr ? "zlib says " + std::to_string(code) : stream_.msg);
      }
    }
    return size - stream_.avail_out;
  }

 private:
  // Behind a member: zeros are skipped, as gzip and Python do.
  bool skip_padding() {
    const Bytef* end = stream_.next_in + stream_.avail_in;
    Bytef* next = std::find_if(stream_.next_in, stream_.next_in + stream_.avail_in,
                               [](Bytef byte) { return byte != 0; });
    if (next == stream_.next_in) return false;
    if (padded_ != nullptr) *padded_ = true;
    stream_.next_in = next;
    stream_.avail_in = static_cast<uInt>(end - next);
    return true;
  }
  [[noreturn]] void fail(const std::string& reason) {
    throw Error(path_.string() + ": damaged or truncated gzip stream (" + reason + ")");
  }
  std::filesystem::path path_;
  PlainReader file_;
  bool* padded_;
  z_stream stream_{};
  std::vector<char> buffer_ = std::vector<char>(size_t{1} << 18);
  bool in_member_ = true;  // an empty file is no gzip file
};

// The window that a frame asks for is allocated at once: 128 MiB, as zstd allows by default, or
// what a file of this size can have been made with (zstd --long).
int window_log_of(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto size = static_cast<uint64_t>(std::filesystem::file_size(path, ignored));
  return std::clamp(static_cast<int>(std::bit_width(size)) + 6, 27, 31);
}

class ZstdReader {
 public:
  explicit ZstdReader(const std::filesystem::path& path)
      : path_(path), file_(path), stream_(ZSTD_createDStream(), ZSTD_freeDStream) {
    ZSTD_initDStream(stream_.get());
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, window_log_of(path));
  }

  size_t read(std::span<char> out) {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos == 0) {
      if (input_.pos == input_.size && !pending_output_) {
        const size_t got = file_.read(buffer_);
        if (got == 0) {
          if (left_in_frame_ != 0) fail("it ends too early");
          return 0;
        }
        input_ = {buffer_.data(), got, 0};
      }
      left_in_frame_ = ZSTD_decompressStream(stream_.get(), &output, &input_);
      if (ZSTD_isError(left_in_frame_)) fail(ZSTD_getErrorName(left_in_frame_));
      // A full output buffer may leave more inside the decoder than input is left.
      pending_output_ = output.pos == output.size && left_in_frame_ != 0;
    }
    return output.pos;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) {
    throw Error(path_.string() + ": damaged or truncated zstd stream (" + reason + ")");
  }
  std::filesystem::path path_;
  PlainReader file_;
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  std::vector<char> buffer_ = std::vector<char>(ZSTD_DStreamInSize());
  ZSTD_inBuffer input_{nullptr, 0, 0};
  size_t left_in_frame_ = 1;  // an empty file is no zstd file
  bool pending_output_ = false;
};

template <typename Reader, typename... Args>
ByteReader make_reader(Args&&... args) {
  auto reader = std::make_shared<Reader>(std::forward<Args>(args)...);
  return [reader](std::span<char> out) { return reader->read(out); };
}

}  // namespace

std::string lower_extension(const std::filesystem::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return extension;
}

Compression compression_of(const std::filesystem::path& path) {
  const std::string extension = lower_extension(path);
  if (extension == ".gz" || extension == ".gzip") return Compression::gzip;
  if (extension == ".zst" || extension == ".zstd") return Compression::zstd;
  return Compression::none;
}

size_t max_document_bytes(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return std::max<size_t>(size_t{1} << 28, error ? 0 : 64 * size);
}

void refuse_bomb(const std::filesystem::path& path, size_t max_bytes) {
  throw Error(path.string() + ": unpacks to a single document of more than " +
              std::to_string(max_bytes >> 20) + " MiB; split it up, or unpack the file first");
}

ByteReader open_bytes(const std::filesystem::path& path, int64_t offset, bool* padded) {
  const Compression compression = compression_of(path);
  ST_CHECK(offset == 0 || compression == Compression::none);
  if (compression == Compression::gzip) return make_reader<GzipReader>(path, padded);
  if (compression == Compression::zstd) return make_reader<ZstdReader>(path);
  return make_reader<PlainReader>(path, offset);
}

}  // namespace smalltalk
