// One case of a benchmark of the engine, for ci/gpu.py: says what it is and what is predicted for a
// step on such a card, then works for as many seconds as each line of its input asks for and
// answers with tokens per second, as JSON lines. To the line "profile" it answers with the seconds
// of a step by kind of work.
//
//   engine_bench device=cuda card="NVIDIA H200" mode=step models=4 vocab=32000 hidden=96 layers=12
//     heads=12 intermediate=384 feed_forward=relu2 batch=32 micro=0 length=256 recompute=none
//     merged_experts=0 segment_tokens=0
#include <cstdlib>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "device_profile.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/device_peak.hpp"
#include "lm/torch/gemm_rate.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/lm/train/memory.hpp"
#include "smalltalk/lm/train/roofline.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {
namespace {

class Arguments {
 public:
  Arguments(int count, char** words) {
    for (int i = 1; i < count; ++i) {
      const std::string word = words[i];
      const size_t equals = word.find('=');
      if (equals == std::string::npos) throw Error(word + ": write key=value");
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  std::string text(const std::string& key) const {
    const auto found = values_.find(key);
    if (found == values_.end()) throw Error(key + "=... is missing");
    return found->second;
  }
  int64_t number(const std::string& key) const { return std::atoll(text(key).c_str()); }

 private:
  std::map<std::string, std::string> values_;
};

Recompute recompute_of(const std::string& name) {
  if (name == "none") return Recompute::none;
  if (name == "selective") return Recompute::selective;
  if (name == "full") return Recompute::full;
  throw Error("recompute=" + name + ": none, selective or full");
}

RowSource some_rows(int64_t row_tokens, int64_t vocab) {
  return {row_tokens, [=](int64_t first, int64_t count, std::span<int64_t> tokens) {
            for (int64_t i = 0; i < count * row_tokens; ++i) {
              const auto index = static_cast<uint64_t>(first * row_tokens + i);
              tokens[static_cast<size_t>(i)] = static_cast<int64_t>(
                  derive_seed(1, "bench tokens", index) % static_cast<uint64_t>(vocab));
            }
          }};
}

double peak_memory(const DeviceConfig& device) {
  return device.device == "cuda" ? cuda_device().memory().peak_bytes : 0;
}

// Calls work(n), which does n steps, for about so long.
double seconds_per_step(double seconds, const std::function<void(int64_t)>& work) {
  double start = now_seconds();
  work(1);
  const double one = std::max(now_seconds() - start, 1e-9);
  const auto steps = std::max<int64_t>(1, static_cast<int64_t>(seconds / one));
  start = now_seconds();
  work(steps);
  return (now_seconds() - start) / static_cast<double>(steps);
}

// Seconds of a step of all models on the card, by kind of work; null for a card that is not known.
nlohmann::json predicted_seconds(const std::string& card, int64_t num_models,
                                 const ModelConfig& model, const TrainConfig& train,
                                 int64_t length) {
  const auto known = std::ranges::find_if(accelerators(), [&](const Accelerator& each) {
    return card.find(each.name) != std::string::npos &&
           peak_flops_per_second(card) == each.peak_flops;
  });
  if (known == accelerators().end()) return nullptr;
  const StepTime time = predicted_step(model, train, length, 1, *known);
  nlohmann::json seconds = nlohmann::json::object();
  for (const auto& [kind, of_one] :
       {std::pair(WorkKind::product, time.products + time.loss_products),
        {WorkKind::attention, time.attention},
        {WorkKind::elementwise, time.elementwise},
        {WorkKind::loss, time.loss - time.loss_products},
        {WorkKind::optimizer, time.optimizer}}) {
    seconds[name_of(kind)] = static_cast<double>(num_models) * of_one;
  }
  return seconds;
}

// Measured, of one of some steps.
nlohmann::json measured_seconds(bool cuda, const std::function<void(int64_t)>& work) {
  constexpr int64_t kSteps = 3;
  const WorkSeconds all = profile_work(cuda, [&] { work(kSteps); });
  nlohmann::json seconds = nlohmann::json::object();
  for (size_t i = 0; i < all.size(); ++i) {
    seconds[name_of(static_cast<WorkKind>(i))] = all[i] / kSteps;
  }
  return seconds;
}

void run(const Arguments& given) {
  ModelConfig model;
  model.vocab_size = given.number("vocab");
  model.hidden_size = given.number("hidden");
  model.num_layers = given.number("layers");
  model.num_heads = given.number("heads");
  model.intermediate_size = given.number("intermediate");
  model.feed_forward =
      given.text("feed_forward") == "relu2" ? FeedForward::relu2 : FeedForward::swiglu;
  model.merged_experts = given.number("merged_experts");
  model.segment_tokens = given.number("segment_tokens");
  DeviceConfig device;
  device.device = given.text("device");
  if (device.device == "cuda") device.precision = "bf16-mixed";
  configure_runtime(device, 0);
  const bool training = given.text("mode") == "step";
  const int64_t num_models = given.number("models"), batch = given.number("batch"),
                length = given.number("length");
  TrainConfig train;
  train.steps = INT64_MAX;
  train.batch_size = batch;
  train.micro_batch_size = given.number("micro");
  train.recompute = recompute_of(given.text("recompute"));
  train.lr = 1e-4;
  train.lr_decay = Decay::constant;
  train.log_interval = INT64_MAX;
  train.save_interval = 0;

  std::vector<uint64_t> seeds(static_cast<size_t>(num_models));
  std::iota(seeds.begin(), seeds.end(), uint64_t{1});
  TransformerStack stack(model, device, seeds);
  const RowSource rows = some_rows(length + 1, model.vocab_size);
  std::vector<Trainer> trainers;
  std::vector<Trainer*> each;
  const std::vector<RowSource> sources(seeds.size(), rows);
  if (training) {
    trainers.reserve(seeds.size());
    for (int64_t i = 0; i < num_models; ++i) {
      TrainOptions options;
      options.name = "bench";
      options.show_progress = false;
      trainers.emplace_back(stack[i], train, options);
      each.push_back(&trainers.back());
    }
  }
  const auto work = [&](int64_t steps) {
    if (training) {
      train_stack(stack, each, sources, each[0]->step() + steps);
    } else {
      visit_log_probs(stack, rows, 0, steps * batch, [](const LogProbs&) {});
    }
  };
  const auto flops_of = training ? train_flops : forward_flops;
  // A scoring step has the same rows for all models.
  const double flops = static_cast<double>(num_models) * flops_of(stack[0].config(), batch, length);
  const double predicted =
      static_cast<double>(num_models) * predicted_memory(model, train, device, length, 1).total();
  work(3);  // warm-up, recording, and the first that is only launched
  nlohmann::json about = {{"parameters", stack[0].num_parameters()},
                          {"flops_per_step", flops},
                          {"tokens_per_step", num_models * batch * length},
                          {"predicted_bytes", training ? predicted : 0},
                          {"peak_flops_per_second", device_flops_per_second(device)}};
  if (training) {
    about["product_flops_per_step"] =
        static_cast<double>(num_models) *
        predicted_step(model, train, length, 1, accelerators().front()).product_flops;
    about["predicted_seconds"] =
        predicted_seconds(given.text("card"), num_models, model, train, length);
  }
  std::cout << about << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    if (line == "profile") {
      std::cout << nlohmann::json{{"seconds", measured_seconds(device.device == "cuda", work)}}
                << std::endl;
      continue;
    }
    const double seconds = seconds_per_step(std::atof(line.c_str()), work);
    std::cout << nlohmann::json{{"rate",
                                 static_cast<double>(num_models * batch * length) / seconds},
                                {"peak_bytes", peak_memory(device)}}
              << std::endl;
  }
}

}  // namespace
}  // namespace smalltalk

int main(int argc, char** argv) {
  try {
    smalltalk::run(smalltalk::Arguments(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
