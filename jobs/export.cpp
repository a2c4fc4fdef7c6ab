// export: a run's models as folders for other programs.
#include "smalltalk/mixture/evaluation/export.hpp"

#include <iostream>

#include "jobs.hpp"

namespace smalltalk {

void add_export_job(CLI::App& app, JobRun& run) {
  struct Options {
    std::string run;
    std::string out;
    std::vector<std::string> merge_for;
  };
  auto* job = app.add_subcommand("export", "Write a run's models as Hugging Face folders");
  auto options = std::make_shared<Options>();
  job->add_option("run", options->run, "Run folder, trained to its end")->required();
  job->add_option("--out", options->out, "A folder that does not exist yet")->required();
  job->add_option(
      "--merge-for", options->merge_for,
      "Files, folders or globs of text (as data.test): merge the Lory model for it into "
      "a plain model, lory-merged");
  job->footer(
      "Every expert, router and dense model gets a folder that transformers and what builds on it\n"
      "load as it is; mixture.json beside them names all parts by hash. A Lory model comes with\n"
      "a modeling_lory.py, which needs trust_remote_code=True.\n"
      "--merge-for also makes a plain Llama (Arcee, of relu2) of it. Each layer's experts are\n"
      "merged once, by the mean of the weights that scoring the text would merge them by: over\n"
      "all segments of all its sequences but first ones, which weigh all experts alike. The text\n"
      "is cut into sequences as it lies, document behind document, and must fill one.\n"
      "  smalltalk export runs/quickstart --out quickstart-hf\n"
      "  lm_eval --model hf --model_args pretrained=quickstart-hf/experts/0 --tasks ...\n"
      "  smalltalk export RUN --out german-hf --merge-for german.jsonl");
  job->callback([&run, options] {
    run = [options] {
      return run_alone("export", [&] {
        export_mixture(open_run(options->run), options->out, options->merge_for);
        std::cout << options->out << "\n";
      });
    };
  });
}

}  // namespace smalltalk
