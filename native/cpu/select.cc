// The k-th largest magnitude is found by its bits (kernels_pruning.h), without a sort:
//  1. a sample of whole cache lines, or the last selection of a row, gives a window of magnitudes that almost surely
//  holds the threshold;
//  2. one pass over the scores counts those above the window and collects those inside, a few percent;
//  3. counts of those above one guess after another, or histograms where there are many, each over the bin that the
//  last one pointed at, end at what separates exactly k from the others, or at one bit pattern that several have.
// Where the threshold turns out to lie outside the window, or too many scores lie inside (ties), step 3 runs on all the
// scores of the segment instead: the result is exact in any case, only the time differs. Counts are integers and tiles
// have fixed bounds, so nothing depends on the number of threads.
#include "cpu/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

namespace alps {

namespace {

constexpr int binBits = 11;
constexpr int64_t bins = 1 << binBits;
constexpr uint32_t largestBits = INT32_MAX;
constexpr Reaches reaches{1u << 19, 1u << 14, 1u << 21, 2};    // 6 %, 0.2 %, 25 %; moves get smaller, some by turns
constexpr size_t mostCounted = 1 << 20, fewCounted = 1 << 15;  // above, histograms read less
constexpr size_t scoresOfHistogram = 1 << 12, scoresOfCount = 1 << 15;  // that pay for a thread
constexpr int64_t smallestSampled = 1 << 18;  // elements; below, histograms of everything cost less than the window

// A run of scores that one task works on, inside one segment.
struct Tile {
  int64_t begin, end;
  uint32_t above = 0, inside = 0;  // scores above and inside the window
  bool overflow = false;           // more inside than were collected
  uint64_t equal = 0;              // scores at the threshold
  int64_t split = 0;               // those at the threshold are kept before this element
};

struct Segment {
  int64_t begin, end;
  uint64_t keep;
  size_t firstTile, lastTile;
  bool search = false;                   // neither none nor all are kept
  bool windowed = false;                 // low and high are a window
  uint32_t low = 0, high = largestBits;  // the window, both ends in it
  uint32_t threshold = 0;
  int64_t size() const { return end - begin; }
};

struct Span {
  const float* data;
  size_t size;
};

size_t sizeOf(const std::vector<Span>& spans) {
  return std::accumulate(spans.begin(), spans.end(), size_t{0},
                         [](size_t sum, const Span& span) { return sum + span.size; });
}

struct Found {
  uint32_t bits;
  uint64_t rank;  // so many of those equal to bits are kept, beside all that are above
};

class Selector {
 public:
  Selector(ThreadPool& pool, const PruningKernels& kernels, const float* scores, const SelectionLoops& loops)
      : pool_(pool), kernels_(kernels), scores_(scores), loops_(loops) {}

  void plan(int64_t columns, const Counts& rowEnds, const Counts& keep, const std::vector<Expected>& expected);
  void makeAndCollect();
  void findThreshold(Segment& segment);
  void use();
  std::vector<Segment>& segments() { return segments_; }

 private:
  void sampleWindow(Segment& segment);
  void forTiles(bool makes, bool collects);
  Found search(const std::vector<Span>& spans, uint32_t low, uint32_t high, uint64_t rank);
  Found searchByCounts(const std::vector<Span>& spans, uint32_t low, uint32_t high, uint64_t rank);
  Found searchByBins(const std::vector<Span>& spans, uint32_t low, uint32_t high, uint64_t rank);
  void divideTies(Segment& segment, const std::vector<Span>& spans, uint64_t ties);
  int64_t positionOf(const Tile& tile, uint32_t bits, uint64_t rank) const;
  // task(span, job) for all of them in so many jobs; one is the calling thread's. jobsOf: with at least so many scores
  // each.
  int64_t jobsOf(const std::vector<Span>& spans, size_t scores) const;
  template <typename Task>
  void forSpans(const std::vector<Span>& spans, int64_t jobs, const Task& task);

  ThreadPool& pool_;
  const PruningKernels& kernels_;
  const float* scores_;
  const SelectionLoops& loops_;
  std::vector<Segment> segments_;
  std::vector<Tile> tiles_;
  std::vector<size_t> segmentOf_;  // by tile
  const int64_t insideCapacity_ = loops_.tile / 4, insideStride_ = insideCapacity_ + pieceSize + 16;
  std::unique_ptr<float[]> inside_;  // insideStride_ values a tile, touched only as far as they are used
};

void Selector::plan(int64_t columns, const Counts& rowEnds, const Counts& keep, const std::vector<Expected>& expected) {
  int64_t begin = 0;
  for (size_t s = 0; s < rowEnds.size(); s++) {
    Segment segment{begin, static_cast<int64_t>(rowEnds[s]) * columns, keep[s], tiles_.size(), 0};
    for (int64_t at = begin; at < segment.end; at += loops_.tile) {
      tiles_.push_back({at, std::min(at + loops_.tile, segment.end)});
      segmentOf_.push_back(s);
    }
    segment.lastTile = tiles_.size();
    segment.search = segment.keep > 0 && segment.keep < static_cast<uint64_t>(segment.size());
    if (segment.search) {
      Expected last = s < expected.size() ? expected[s] : Expected{};
      if (last.reach > 0) {
        segment.low = last.low(), segment.high = last.high();
        segment.windowed = true;
      } else if (!loops_.makeTile && segment.size() >= smallestSampled) {
        sampleWindow(segment);
      }
    }
    segments_.push_back(segment);
    begin = segment.end;
  }
}

void Selector::sampleWindow(Segment& segment) {
  // One chunk in each of `chunks` equal strata, at a place that a hash of its number gives.
  constexpr int64_t chunk = SelectionLoops::chunk;
  int64_t chunks = std::clamp<int64_t>(segment.size() / 1024, 256, 1024), stratum = segment.size() / chunks;
  std::vector<float> sample(static_cast<size_t>(chunks * chunk));
  pool_.ranges(chunks, 128, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      uint64_t hash = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15u >> 32;
      int64_t offset = static_cast<int64_t>(hash % static_cast<uint64_t>(stratum - chunk + 1));
      loops_.sample(segment.begin + i * stratum + offset, chunk, sample.data() + i * chunk);
    }
  });
  // The threshold's rank in the sample, and around it 4.5 standard errors of independent draws: scores in one cache
  // line are alike, so these are nearer to three.
  double size = static_cast<double>(sample.size()),
         part = static_cast<double>(segment.keep) / static_cast<double>(segment.size());
  double margin = 4.5 * std::sqrt(part * (1 - part) * size) + 8;
  double upper = std::floor(part * size - margin), lower = std::ceil(part * size + margin);
  std::vector<Span> spans{{sample.data(), sample.size()}};
  uint64_t above = 0;
  if (upper >= 1) {
    Found found = search(spans, 0, largestBits, static_cast<uint64_t>(upper));
    segment.high = found.bits, above = static_cast<uint64_t>(upper) - found.rank;
  }
  if (lower <= size) segment.low = search(spans, 0, segment.high, static_cast<uint64_t>(lower) - above).bits;
  segment.windowed = true;
}

void Selector::makeAndCollect() {
  // Whole tiles cannot be sampled before they are made.
  auto waits = [&](const Segment& segment) {
    return loops_.makeTile && segment.search && !segment.windowed && segment.size() >= smallestSampled;
  };
  bool makesFirst = std::any_of(segments_.begin(), segments_.end(), waits);
  if (makesFirst) forTiles(true, false);
  for (Segment& segment : segments_)
    if (makesFirst && waits(segment)) sampleWindow(segment);
  bool collects = std::any_of(segments_.begin(), segments_.end(), [](const Segment& s) { return s.windowed; });
  if (collects) inside_.reset(new float[tiles_.size() * static_cast<size_t>(insideStride_)]);
  if (!makesFirst || collects) forTiles(!makesFirst, collects);
}

void Selector::forTiles(bool makes, bool collects) {
  pool_.run(static_cast<int64_t>(tiles_.size()), [&](int64_t t) {
    Tile& tile = tiles_[static_cast<size_t>(t)];
    const Segment& segment = segments_[segmentOf_[static_cast<size_t>(t)]];
    if (makes && loops_.makeTile) loops_.makeTile(tile.begin, tile.end);
    float overflow[pieceSize + 16];
    forPieces(tile.begin, tile.end, pieceSize, [&](int64_t at, int64_t n) {
      if (makes && loops_.make) loops_.make(at, n);
      if (!collects || !segment.windowed) return;
      tile.overflow |= tile.inside > insideCapacity_;
      float* out = tile.overflow ? overflow : inside_.get() + t * insideStride_ + tile.inside;
      tile.inside += static_cast<uint32_t>(
          kernels_.collect(scores_ + at, static_cast<size_t>(n), segment.low, segment.high, out, &tile.above));
    });
  });
}

int64_t Selector::jobsOf(const std::vector<Span>& spans, size_t scores) const {
  return std::clamp<int64_t>(static_cast<int64_t>(sizeOf(spans) / scores), 1,
                             std::clamp<int64_t>(std::ssize(spans), 1, 2 * pool_.threads()));
}

template <typename Task>
void Selector::forSpans(const std::vector<Span>& spans, int64_t jobs, const Task& task) {
  int64_t count = std::ssize(spans);
  pool_.run(jobs, [&](int64_t job) {
    for (int64_t i = count * job / jobs; i < count * (job + 1) / jobs; i++) task(static_cast<size_t>(i), job);
  });
}

// The rank-th largest of the magnitudes in [low, high], rank from 1; there are that many.
Found Selector::search(const std::vector<Span>& spans, uint32_t low, uint32_t high, uint64_t rank) {
  bool isNarrow = high - low <= 1u << 24;  // two octaves; over more, more guesses are needed
  return sizeOf(spans) <= (isNarrow ? mostCounted : fewCounted) ? searchByCounts(spans, low, high, rank)
                                                                : searchByBins(spans, low, high, rank);
}

// Counts what is above one guess after another: few are needed, and a count takes a fraction of a histogram's time.
// Where many scores are alike, histograms lead on.
Found Selector::searchByCounts(const std::vector<Span>& spans, uint32_t low, uint32_t high, uint64_t rank) {
  constexpr int mostGuesses = 10;
  int64_t jobs = jobsOf(spans, scoresOfCount);
  std::vector<uint64_t> counts(static_cast<size_t>(jobs));
  auto countAbove = [&](int64_t bits) {
    std::fill(counts.begin(), counts.end(), 0);
    forSpans(spans, jobs, [&](size_t i, int64_t job) {
      counts[static_cast<size_t>(job)] += kernels_.countAbove(spans[i].data, spans[i].size, static_cast<int32_t>(bits));
    });
    return static_cast<int64_t>(std::accumulate(counts.begin(), counts.end(), uint64_t{0}));
  };
  Count under{static_cast<int64_t>(low) - 1, 0}, over{high, countAbove(high)};
  under.above = countAbove(under.bits);
  int64_t wanted = over.above + static_cast<int64_t>(rank);
  for (int tries = 0, guesses = 0; over.bits - under.bits > 1; tries++) {
    if (tries == mostGuesses)
      return searchByBins(spans, static_cast<uint32_t>(under.bits + 1), static_cast<uint32_t>(over.bits),
                          static_cast<uint64_t>(wanted - over.above));
    int64_t bits = between(under, over, wanted, guesses);
    Count tried{bits, countAbove(bits)};
    if (tried.above == wanted) return {static_cast<uint32_t>(bits), 0};
    (tried.above > wanted ? under : over) = tried;
  }
  return {static_cast<uint32_t>(over.bits), static_cast<uint64_t>(wanted - over.above)};
}

// By histograms, each over the bin that the last one pointed at.
Found Selector::searchByBins(const std::vector<Span>& spans, uint32_t low, uint32_t high, uint64_t rank) {
  int64_t jobs = jobsOf(spans, scoresOfHistogram);
  std::vector<uint32_t> counts;  // [jobs, bins]
  while (low < high) {
    uint32_t width = high - low;
    int shift = std::max(0, static_cast<int>(std::bit_width(width)) - binBits);
    counts.assign(static_cast<size_t>(jobs * bins), 0);
    forSpans(spans, jobs, [&](size_t i, int64_t job) {
      kernels_.histogram(spans[i].data, spans[i].size, low, width, shift, counts.data() + job * bins);
    });
    int64_t bin = bins - 1;
    for (;; bin--) {
      uint64_t count = 0;
      for (int64_t job = 0; job < jobs; job++) count += counts[static_cast<size_t>(job * bins + bin)];
      if (rank <= count || bin == 0) break;
      rank -= count;
    }
    low += static_cast<uint32_t>(bin) << shift;
    high = std::min(high, low + (1u << shift) - 1);
  }
  return {low, rank};
}

void Selector::findThreshold(Segment& segment) {
  if (!segment.search) {
    segment.threshold = segment.keep == 0 ? largestBits : 0;
    for (size_t t = segment.firstTile; t < segment.lastTile; t++)
      tiles_[t].split = segment.keep == 0 ? tiles_[t].begin : tiles_[t].end;
    return;
  }
  uint64_t above = 0, inside = 0, rank = segment.keep;
  bool overflow = false;
  for (size_t t = segment.firstTile; t < segment.lastTile; t++) {
    above += tiles_[t].above;
    inside += tiles_[t].inside;
    overflow |= tiles_[t].overflow;
  }
  uint32_t low = segment.low, high = segment.high;
  bool collected = segment.windowed && !overflow;
  if (segment.windowed) {
    if (rank <= above) {
      low = high + 1, high = largestBits, collected = false;
    } else if (rank <= above + inside) {
      rank -= above;
    } else {
      rank -= above + inside, high = low - 1, low = 0, collected = false;
    }
  }
  std::vector<Span> spans;
  for (size_t t = segment.firstTile; t < segment.lastTile; t++) {
    const Tile& tile = tiles_[t];
    if (collected)
      spans.push_back({inside_.get() + static_cast<int64_t>(t) * insideStride_, tile.inside});
    else
      spans.push_back({scores_ + tile.begin, static_cast<size_t>(tile.end - tile.begin)});
  }
  Found found = search(spans, low, high, rank);
  segment.threshold = found.bits;
  divideTies(segment, spans, found.rank);
}

// The first `ties` scores equal to the threshold are kept: whole tiles of them, then a part of one.
void Selector::divideTies(Segment& segment, const std::vector<Span>& spans, uint64_t ties) {
  if (ties == 0) {
    for (size_t t = segment.firstTile; t < segment.lastTile; t++) tiles_[t].split = tiles_[t].begin;
    return;
  }
  forSpans(spans, jobsOf(spans, scoresOfCount), [&](size_t i, int64_t) {
    tiles_[segment.firstTile + i].equal = kernels_.countEqual(spans[i].data, spans[i].size, segment.threshold);
  });
  for (size_t t = segment.firstTile; t < segment.lastTile; t++) {
    Tile& tile = tiles_[t];
    if (ties == 0)
      tile.split = tile.begin;
    else if (ties >= tile.equal)
      tile.split = tile.end;
    else
      tile.split = positionOf(tile, segment.threshold, ties) + 1;
    ties -= std::min(ties, tile.equal);
  }
}

// The element of the tile that is the rank-th equal to bits.
int64_t Selector::positionOf(const Tile& tile, uint32_t bits, uint64_t rank) const {
  for (int64_t at = tile.begin;; at++) {
    if ((std::bit_cast<uint32_t>(scores_[at]) & largestBits) == bits && --rank == 0) return at;
  }
}

void Selector::use() {
  int64_t count = static_cast<int64_t>(tiles_.size());
  pool_.run(count, [&](int64_t i) {
    size_t t = static_cast<size_t>(count - 1 - i);  // backwards: the last ones made are still in cache
    const Tile& tile = tiles_[t];
    int32_t threshold = static_cast<int32_t>(segments_[segmentOf_[t]].threshold);
    forPieces(tile.begin, tile.split, pieceSize, [&](int64_t at, int64_t n) { loops_.use(at, n, threshold - 1); });
    forPieces(tile.split, tile.end, pieceSize, [&](int64_t at, int64_t n) { loops_.use(at, n, threshold); });
  });
}

}  // namespace

void selectTop(ThreadPool& pool, const PruningKernels& kernels, const float* scores, int64_t columns,
               const Counts& rowEnds, const Counts& keep, const SelectionLoops& loops,
               std::vector<Expected>* expected) {
  Selector selector(pool, kernels, scores, loops);
  selector.plan(columns, rowEnds, keep, expected ? *expected : std::vector<Expected>{});
  selector.makeAndCollect();
  for (Segment& segment : selector.segments()) selector.findThreshold(segment);
  selector.use();
  if (!expected) return;
  std::vector<Expected> last = std::exchange(*expected, {});
  for (const Segment& segment : selector.segments()) {
    size_t s = expected->size();
    expected->push_back(next(s < last.size() ? last[s] : Expected{}, segment.threshold, reaches));
  }
}

}  // namespace alps
