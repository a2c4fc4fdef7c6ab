// What the report reads, as small runs leave it: made up here, with numbers that are easy to find
// again.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

namespace smalltalk {

using nlohmann::json;

inline json model(double perplexity, double flops) {
  return {{"perplexity", {{"all", perplexity}, {"after_prefix", perplexity - 1}}},
          {"validation_perplexity", {{"all", perplexity}, {"after_prefix", perplexity - 1}}},
          {"bits_per_byte", 1.8},
          {"perplexity_per_domain", {{"prose", perplexity}, {"code", perplexity / 2}}},
          {"parameters", 12345},
          {"steps", 100},
          {"batch_size", 8},
          {"lr", 0.003},
          {"train_tokens", 1e6},
          {"train_flops", flops},
          {"router_flops", flops / 20},
          {"sharding_flops", flops / 50},
          {"inference_flops_per_sequence", 1e7}};
}

inline json results() {
  return {{"schema", 1},
          {"name", "a run"},
          {"seed", 1},
          {"experts", 2},
          {"prefix_tokens", 8},
          {"seq_length", 32},
          {"models",
           {{"mixture", model(18.0, 1e12)},
            {"dense", model(20.0, 1.01e12)},
            {"random_shards", model(24.0, 1e12)}}},
          {"per_expert",
           {{{"expert", 0},
             {"train_sequences", 50},
             {"eval_share", 0.4},
             {"perplexity", 17.0},
             {"dense_perplexity", 19.0}},
            {{"expert", 1},
             {"train_sequences", 50},
             {"eval_share", 0.6},
             {"perplexity", 19.0},
             {"dense_perplexity", 18.5}}}},
          {"routing",
           {{"purity", 0.9},
            {"domains", {"unknown", "prose", "code"}},
            {"expert_by_domain", {{0, 0.9, 0.1}, {0, 0.1, 0.9}}}}},
          {"communication",
           {{"collectives", 3},
            {"bytes_per_router_per_round", 1024},
            {"world_bytes_after_shards", 0},
            {"phases",
             {{{"phase", "route"},
               {"communicator", "world"},
               {"call", "MPI_Allgatherv"},
               {"calls", 3},
               {"bytes", 4096}}}}}},
          {"seconds", {{"route", 3.5}, {"experts", 20.0}}}};
}

// Of two layers and two domains: expert 0 has half of the weight of prose, the others share the
// rest; in code all are alike.
inline json lory_routing_of(int experts) {
  const auto rest = 0.5 / (experts - 1);
  std::vector<double> prose(static_cast<size_t>(experts), rest);
  prose[0] = 0.5;
  const std::vector<double> code(static_cast<size_t>(experts), 1.0 / experts);
  json layers = json::array(), by_domain = json::array();
  for (const int layer : {0, 3}) {
    layers.push_back({{"layer", layer},
                      {"active_share", 0.125},
                      {"active_experts", 2},
                      {"entropy", 0.5},
                      {"entropy_share", 0.75},
                      {"largest_weight", 0.8}});
    by_domain.push_back({{"layer", layer}, {"weights", {prose, code}}});
  }
  return {{"experts", experts},           {"segments", 1234},       {"layers", layers},
          {"domains", {"prose", "code"}}, {"by_domain", by_domain}, {"dead_routers", {0}},
          {"dead_experts", {1}}};
}

inline json comparison() {
  const auto row = [](const char* name, const char* rule, int prefix, double perplexity) {
    return json{{"model", name},
                {"rule", rule},
                {"prefix_tokens", prefix},
                {"experts", 1},
                {"temperature", 0},
                {"perplexity", perplexity},
                {"bits_per_byte", 1.8},
                {"difference_nats_per_token", std::log(perplexity / 20)},
                {"difference_95_percent", {std::log(0.8), std::log(1.1)}},
                {"verdict", "undecided"},
                {"inference_flops_per_sequence", 1e7}};
  };
  return {{"split", "test"},
          {"reference", "dense"},
          {"sequences", 640},
          {"documents", 37},
          {"rows",
           {row("dense", "", 0, 20), row("mixture", "routers", 4, 19),
            row("mixture", "routers", 8, 18), row("mixture", "experts as routers", 4, 18.5),
            row("mixture", "best in hindsight", 32, 17)}}};
}

// As the job `tasks` writes it: a plain task, a group with a part, and a task with targets.
inline json tasks() {
  const auto of = [](double acc) {
    const json part = {{"sample_len", 20}, {"acc,none", acc}, {"acc_stderr,none", 0.0312}};
    json plain = part;
    plain["acc_norm,none"] = acc + 0.01;
    plain["acc_norm_stderr,none"] = "N/A";
    json words = part;
    words["perplexity,none"] = 100 * acc;
    words["perplexity_stderr,none"] = 1234;
    return json{
        {"results", {{"copa", plain}, {"pairs", part}, {"pairs_a", part}, {"words", words}}},
        {"n-shot", {{"copa", 5}, {"pairs", 0}}},
        {"group_subtasks", {{"pairs", {"pairs_a"}}}}};
  };
  json all = {{"models", {{"dense", of(0.5)}, {"mixture", of(0.625)}}}};
  all["models"]["mixture"]["expert_shares"] = {{"copa", {0.75, 0.25}}};
  return all;
}

inline json sweep() {
  const auto row = [](const char* run, const char* name, double nats, bool reference) {
    return json{{"run", run},
                {"label", ""},
                {"model", name},
                {"rule", "routers"},
                {"prefix_tokens", 16},
                {"experts", 1},
                {"perplexity", 30},
                {"bits_per_byte", 2.1},
                {"difference_nats_per_token", nats},
                {"difference_95_percent", {nats - 0.01, nats + 0.01}},
                {"verdict", "better"},
                {"reference", reference},
                {"compared_with", "base: dense"},
                {"step", 0},
                {"train_flops", 1e12},
                {"inference_flops_per_sequence", 1e7},
                {"perplexity_by_seed", {29, 31}},
                {"difference_by_seed", {nats - 0.02, nats + 0.02}}};
  };
  return {{"schema", 1},
          {"tables",
           {{{"name", "first"},
             {"title", "Which is best?"},
             {"data", "news"},
             {"seeds", {1, 2}},
             {"sequences", 640},
             {"documents", 37},
             {"rows",
              {row("base", "dense", 0, true), row("base", "mixture", std::log(0.9), false),
               row("other", "mixture", std::log(1.1), false)}}}}}};
}

}  // namespace smalltalk
