// generate: text from a trained run, written by the expert that the routers choose.
#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/documents.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/evaluation/generation.hpp"

namespace smalltalk {
namespace {

struct GenerateJob {
  std::string run;
  std::vector<std::string> prompts;
  std::string file;
  std::string merge;  // empty: not given
  bool json = false;
  GenerateOptions options;
};

// One a line; of a .jsonl file the values of "prompt". Read as text to train on is.
std::vector<std::string> read_prompts(const std::string& path) {
  std::vector<std::string> prompts;
  const BadDocuments bad =
      read_documents(path, [&](const Document& document) { prompts.emplace_back(document.text); },
                     {.text = "prompt", .domain = "", .lines = true, .blank = true});
  if (bad.bad() > 0) throw Error(bad.examples.at(0));
  if (prompts.empty()) throw Error(path + ": holds no prompt");
  return prompts;
}

std::string speakers_of(const GeneratedText& text) {
  std::string names;
  for (const Speaker& speaker : text.speakers) {
    names += names.empty() ? speaker.model
                           : fmt::format(", {} from new token {} on", speaker.model, speaker.from);
  }
  return names;
}

void print(const std::string& prompt, const GeneratedText& text, bool json) {
  if (!json) {
    const std::string seen =
        text.prompt_tokens_cut > 0
            ? fmt::format("the last {} of ", text.prompt_tokens - text.prompt_tokens_cut)
            : "";
    std::cout << fmt::format("[{}: {}{} + {} tokens{}]\n{}{}\n\n", speakers_of(text), seen,
                             text.prompt_tokens, text.new_tokens, text.ended ? ", ended" : "",
                             prompt, text.text);
    return;
  }
  nlohmann::ordered_json row = {{"prompt", prompt},
                                {"text", text.text},
                                {"prompt_tokens", text.prompt_tokens},
                                {"prompt_tokens_cut", text.prompt_tokens_cut},
                                {"new_tokens", text.new_tokens},
                                {"ended", text.ended},
                                {"router_log_likelihoods", text.scores}};
  for (const Speaker& speaker : text.speakers) {
    row["speakers"].push_back({{"model", speaker.model}, {"from", speaker.from}});
  }
  if (!text.expert_weights.empty()) row["expert_weights"] = text.expert_weights;
  std::cout << row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

void generate_texts(const GenerateJob& job) {
  std::vector<std::string> prompts = job.prompts;
  if (!job.file.empty()) {
    const std::vector<std::string> more = read_prompts(job.file);
    prompts.insert(prompts.end(), more.begin(), more.end());
  }
  if (prompts.empty()) prompts.emplace_back();
  const Run run = open_run(job.run);
  configure_runtime(run.experiment.device, 0);
  std::unique_ptr<Progress> progress;
  if (prompts.size() > 1) {
    progress = std::make_unique<Progress>("generate", std::ssize(prompts), "texts");
  }
  const std::vector<GeneratedText> texts = generate(run, prompts, job.options, [&](int64_t done) {
    if (progress) progress->update(done);
  });
  progress.reset();
  for (size_t i = 0; i < texts.size(); ++i) print(prompts[i], texts[i], job.json);
}

}  // namespace

void add_generate_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("generate", "Write text with a trained run, and say who wrote it");
  auto settings = std::make_shared<GenerateJob>();
  GenerateOptions& options = settings->options;
  SamplingOptions& sampling = options.sampling;
  job->add_option("run", settings->run, "Run folder")->required();
  job->add_option("prompt", settings->prompts, "Beginnings of texts; none: a text from nothing");
  job->add_option(
      "--prompts", settings->file,
      "A file with more: one a line, or a .jsonl with {\"prompt\": ...} a line (.gz, .zst)");
  job->add_option("--max-new-tokens", options.max_new_tokens,
                  "At most so many, and none beyond seq_length")
      ->capture_default_str();
  job->add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->capture_default_str();
  job->add_option("--top-k", sampling.top_k, "Draw from the k likeliest tokens; 0: from all")
      ->capture_default_str();
  job->add_option("--top-p", sampling.top_p,
                  "Draw from the likeliest tokens that have this probability together")
      ->capture_default_str();
  job->add_option("--seed", options.seed, "Another one gives other texts")->capture_default_str();
  job->add_option("--prefix-tokens", options.prefix_tokens,
                  "Route on so many tokens; 0: as many as the routers were trained on")
      ->capture_default_str();
  job->add_option("--batch-size", options.batch_size, "Texts that are written side by side")
      ->capture_default_str();
  job->add_option("--model", options.model,
                  "Let this model write, and do not route: baselines/dense, experts/0, ...");
  job->add_option("--merge", settings->merge,
                  "Where a model merges experts (Lory), weigh them once, by the prompt (prompt, as "
                  "without this option), or anew for each segment by the one before (segments)")
      ->check(CLI::IsMember({"prompt", "segments"}));
  job->add_flag("--json", settings->json,
                "One JSON line a text, with the routers' scores and the weights of merged experts");
  job->footer(
      "The routers read the beginning of each text and choose the expert that writes on. If it is\n"
      "shorter than the prefix, they choose by what there is, and again when it is long enough.\n"
      "  smalltalk generate runs/quickstart \"The whale\" --temperature 0.8 --top-p 0.95");
  job->callback([&run, settings, job] {
    const auto refuse = [job](const char* option, const char* why) {
      if (job->count(option) > 0) throw CLI::ValidationError(option, why);
    };
    if (settings->options.sampling.temperature == 0) {
      for (const char* option : {"--top-k", "--top-p"}) {
        refuse(option, "has no effect with --temperature 0, which draws nothing");
      }
    }
    if (!settings->options.model.empty()) {
      refuse("--prefix-tokens", "has no effect with --model, which does not route");
    }
    if (!settings->merge.empty()) {
      settings->options.merging = settings->merge == "prompt" ? MergeBy::prompt : MergeBy::segments;
    }
    run = [settings] { return run_alone("generate", [&] { generate_texts(*settings); }); };
  });
}

}  // namespace smalltalk
