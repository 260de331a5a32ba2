// An image is first copied into a frame with zeros around it, rectified (or turned into dz) on the way, so that no later step tests
// for the border. Tiles are then taken in blocks of about kBlock, from as many images as it takes:
//
//   forward, dx   transform the block's patches             V [rows of kRows tiles, place, tile, in]        second-level cache
//                 for each panel of output channels and each row of tiles: 36 products into M [place, tile, width], which stays
//                 in the first-level cache, and at once the output transform, ReLU mask, sums, and the store
//   dweight       transform patches of x and tiles of dz    V [place, tile, in], D [place, tile, out]
//                 for each place: dU [in, out] += V^T D; the block is long enough to pay for loading and storing dU
//
// kBlock is the largest for which 64 channels' V and one panel of the weight fit the second-level cache: with fewer tiles the
// weight (590 KB at 64 channels) would come from the third-level cache too often.
#include "../conv3x3.h"

#include "conv3x3_pack.h"
#include "conv_output.h"

namespace advnas::cpu::ADVNAS_ISA {
namespace {

constexpr int64_t kBlock = 24;

struct Tiling {
  int64_t rows, columns;                // of tiles
  int64_t frame_height, frame_width;
  explicit Tiling(const ConvShape& shape)
      : rows((shape.height + 3) / 4), columns((shape.width + 3) / 4), frame_height(4 * rows + 2), frame_width(4 * columns + 2) {}
  int64_t tiles() const { return rows * columns; }
  int64_t frame_pixels() const { return frame_height * frame_width; }
  int64_t images_at_once() const { return tiles() < kBlock ? (kBlock + tiles() - 1) / (tiles() > 0 ? tiles() : 1) : 1; }
};

// A place's stride is an odd number of cache lines, so that the 36 places of a tile do not meet in a few sets of the cache.
template <class T>
int64_t place_stride(int64_t tiles, int64_t channels) {
  return ((tiles * channels + kLine<T> - 1) / kLine<T> | 1) * kLine<T>;
}

template <class T>
struct Buffers {
  T *x_frame, *dz_frame, *v, *d, *m, *sums;
  int64_t size = kLine<T>;  // for the alignment

  Buffers(const ConvShape& shape, T* workspace) {
    const Tiling tiling(shape);
    const int64_t in = pad_to_lanes<T>(shape.in), out = pad_to_lanes<T>(shape.out), most = in > out ? in : out;
    T* next = align(workspace);
    const auto take = [&](int64_t elements) {
      T* const taken = next;
      const int64_t whole = (elements + kLine<T> - 1) / kLine<T> * kLine<T>;
      next += whole;
      size += whole;
      return taken;
    };
    x_frame = take(tiling.images_at_once() * tiling.frame_pixels() * in);
    dz_frame = take(tiling.images_at_once() * tiling.frame_pixels() * out);
    v = take(kPlaces * (place_stride<T>(kBlock, most) + kBlock * kLine<T>));
    d = take(kPlaces * place_stride<T>(kBlock, out));
    m = take(kPlaces * kRows * kPanel<T>);
    sums = take(3 * out);
  }
};

// read(pixel, pixels, out) gives a run of pixels of the image.
template <class T, class Read>
void fill_frame(const ConvShape& shape, const Tiling& tiling, int64_t channels, T* frame, const Read& read) {
  const auto clear = [&](int64_t pixels) {
    std::memset(frame, 0, size_t(pixels * channels) * sizeof(T));
    frame += pixels * channels;
  };
  clear(tiling.frame_width + 1);
  for (int64_t h = 0; h < shape.height; ++h) {
    read(h * shape.width, shape.width, frame);
    frame += shape.width * channels;
    clear(tiling.frame_width - shape.width);
  }
  clear((tiling.frame_height - 1 - shape.height) * tiling.frame_width - 1);
}

template <class T>
void fill_x_frames(const T* x, bool relu, int64_t images, const ConvShape& shape, const Tiling& tiling, T* frames) {
  const int64_t channels = pad_to_lanes<T>(shape.in);
  for (int64_t n = 0; n < images; ++n) {
    const T* const image = x + n * shape.height * shape.width * shape.in;
    fill_frame(shape, tiling, channels, frames + n * tiling.frame_pixels() * channels, [&](int64_t pixel, int64_t pixels, T* to) {
      read_rectified(image + pixel * shape.in, relu_floor<T>(relu), pixels, shape.in, to);
    });
  }
}

template <class T>
void fill_dz_frames(const ConvGradient<T>& gradient, int64_t first, int64_t images, const ConvShape& shape, const Tiling& tiling,
                    T* frames) {
  const int64_t channels = pad_to_lanes<T>(shape.out);
  for (int64_t n = 0; n < images; ++n) {
    const int64_t image = (first + n) * shape.height * shape.width;
    fill_frame(shape, tiling, channels, frames + n * tiling.frame_pixels() * channels, [&](int64_t pixel, int64_t pixels, T* to) {
      read_gradient(gradient, image + pixel, pixels, shape.out, to);
    });
  }
}

// The tiles of a group of images, row by row.
struct Tile {
  int64_t image, row, column;
  const Tiling& tiling;
  Tile(const Tiling& tiling, int64_t index)
      : image(index / tiling.tiles()), row(index % tiling.tiles() / tiling.columns), column(index % tiling.columns), tiling(tiling) {}
  void next() {
    if (++column < tiling.columns) return;
    column = 0;
    if (++row < tiling.rows) return;
    row = 0;
    ++image;
  }
  // Of the tile's 6x6 patch in the frames.
  int64_t frame_pixel() const { return (image * tiling.frame_height + 4 * row) * tiling.frame_width + 4 * column; }
};

// v [place, tile, channels] of `tiles` tiles.
template <class T>
void transform_patches(const T* frames, int64_t channels, Tile tile, int64_t tiles, int64_t stride, T* v) {
  const int64_t row = tile.tiling.frame_width * channels;
  for (int64_t t = 0; t < tiles; ++t, tile.next()) {
    const T* const patch = frames + tile.frame_pixel() * channels;
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const T* const from = patch + c;
      T* const to = v + t * channels + c;
      transform_input([&](int i, int j) ADVNAS_INLINE { return load(from + i * row + j * channels); },
                      [&](int place, Vec<T> value) ADVNAS_INLINE { store(to + place * stride, value); });
    }
  }
}

// d [place, tile, channels] of `tiles` tiles.
template <class T>
void transform_gradients(const T* frames, int64_t channels, Tile tile, int64_t tiles, int64_t stride, T* d) {
  const int64_t row = tile.tiling.frame_width * channels;
  for (int64_t t = 0; t < tiles; ++t, tile.next()) {
    const T* const inner = frames + tile.frame_pixel() * channels + row + channels;
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      const T* const from = inner + c;
      T* const to = d + t * channels + c;
      transform_output_gradient([&](int i, int j) ADVNAS_INLINE { return load(from + i * row + j * channels); },
                                [&](int place, Vec<T> value) ADVNAS_INLINE { store(to + place * stride, value); });
    }
  }
}

// Output transform of one tile and one vector of channels. m: [place, ...] with a stride of `stride`.
template <class T, class Lanes>
inline void put_tile(const T* m, int64_t stride, const ConvShape& shape, const Tile& tile, int64_t channels, int64_t count,
                     Lanes& lanes) {
  const int64_t row = shape.width * channels;
  const int64_t offset = (tile.image * shape.height + 4 * tile.row) * row + 4 * tile.column * channels;
  const int64_t height = shape.height - 4 * tile.row, width = shape.width - 4 * tile.column;
  const auto get = [&](int place) ADVNAS_INLINE { return load(m + place * stride); };
  if (height >= 4 && width >= 4 && count >= kLanes<T>) {
    transform_output(get, [&](int i, int j, Vec<T> v) ADVNAS_INLINE { lanes.put(offset + i * row + j * channels, v); });
    return;
  }
  Vec<T> values[4][4];
  transform_output(get, [&](int i, int j, Vec<T> v) { values[i][j] = v; });
  const int64_t whole = count < kLanes<T> ? count : kLanes<T>;
  for (int64_t i = 0; i < height && i < 4; ++i) {
    for (int64_t j = 0; j < width && j < 4; ++j) lanes.put_part(offset + i * row + j * channels, values[i][j], whole);
  }
}

// From frames of `images` images with `in` channels to `output`; output.channels() is the number of output channels.
template <class T, class Output>
void convolve(const T* frames, int64_t in, int64_t first_image, int64_t images, const ConvShape& shape, const Tiling& tiling,
              const T* packed, const Buffers<T>& buffers, Output& output) {
  const int64_t padded = pad_to_lanes<T>(in), out = output.channels();
  const Split blocks(images * tiling.tiles(), kBlock);
  for (int64_t block = 0; block < blocks.parts; ++block) {
    const int64_t first = blocks.begin(block);
    const Split groups(blocks.begin(block + 1) - first, kRows);
    const int64_t group_size = kPlaces * place_stride<T>(kRows, padded);
    for (int64_t g = 0; g < groups.parts; ++g) {
      const int64_t tiles = groups.begin(g + 1) - groups.begin(g);
      transform_patches(frames, padded, Tile(tiling, first + groups.begin(g)), tiles, place_stride<T>(tiles, padded),
                        buffers.v + g * group_size);
    }
    for_panels<T>(out, [&](int64_t column, auto vectors) {
      constexpr int kN = decltype(vectors)::value;
      const T* const panel = weight_panel(packed, in, column);
      for (int64_t g = 0; g < groups.parts; ++g) {
        const int64_t tiles = groups.begin(g + 1) - groups.begin(g), stride = place_stride<T>(tiles, padded);
        const T* const v = buffers.v + g * group_size;
        const int64_t m_stride = tiles * kN * kLanes<T>;
        with_constant<kRows>(tiles, [&](auto rows) {
          constexpr int kM = decltype(rows)::value;
          for (int64_t place = 0; place < kPlaces; ++place) {
            T* const m = buffers.m + place * m_stride;
            multiply<kM, kN, false>(
                v + place * stride, padded, panel + place * in * kN * kLanes<T>, kN * kLanes<T>, in,
                [](int, int) ADVNAS_INLINE { return Vec<T>{}; },
                [&](int t, int n, Vec<T> value) ADVNAS_INLINE { store(m + (t * kN + n) * kLanes<T>, value); });
          }
        });
        for (int n = 0; n < kN; ++n) {
          Tile tile(tiling, first + groups.begin(g));
          tile.image += first_image;
          const int64_t c = column + n * kLanes<T>;
          output.begin(c, tile, [&](int place) { return load(buffers.m + place * m_stride + n * kLanes<T>); });
          auto lanes = output.lanes(c);
          for (int64_t t = 0; t < tiles; ++t, tile.next()) {
            put_tile(buffers.m + (t * kN + n) * kLanes<T>, m_stride, shape, tile, out, out - c, lanes);
          }
          lanes.finish();
        }
      }
    });
    output.flush();
  }
}

}  // namespace
