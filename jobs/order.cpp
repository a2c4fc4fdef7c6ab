// order: puts training documents that are alike one behind the other.
#include "jobs.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"

namespace smalltalk {

void add_order_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("order", "Put training documents that are alike side by side");
  auto options = std::make_shared<RunOptions>();
  auto order = std::make_shared<OrderOptions>();
  add_run_options(*job, *options);
  auto* vectors = job->add_option(
      "--vectors", order->vectors,
      "Compare documents by these vectors: HDF5 with a dataset /vectors, float32 [documents, d], "
      "in "
      "the order of tokens/train.h5. Default: TF-IDF and SVD of the documents' tokens");
  auto* model = job->add_option(
      "--model", order->model,
      "Compare documents by the mean of this trained model's hidden states over their tokens: the "
      "folder of a router, an expert, a dense or a Lory model, of a run with the same tokenizer");
  model->excludes(vectors);
  job->add_option("--dimensions", order->dimensions, "Of the embeddings by TF-IDF and SVD")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->excludes(vectors)
      ->excludes(model);
  job->add_option("--neighbours", order->neighbours,
                  "The most similar documents of each, among which the next one is chosen")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  job->footer(
      "For runs with data.order = \"similar\". Reads RUN/tokens/ (see prepare), and writes\n"
      "RUN/order.h5, an index of documents; no token is copied. From then on sequences are cut\n"
      "from the training documents in this order, so that those of one sequence are alike, as in\n"
      "In-Context Pretraining and Lory. Sequences are still trained on in a shuffled order, and\n"
      "validation and test stay as they are. The order begins with the first document and goes on "
      "to the most\n"
      "similar one (cosine) of the last one's neighbours that is not used yet; where all of them\n"
      "are, with the first unused document. Neighbours come from FAISS: exact below 100,000\n"
      "documents, from there on by an inverted file (IVF).\n"
      "A model comes from another run, as this one's are trained in this order. It reads "
      "documents\n"
      "on the device of [device], in pieces no longer than the sequences that it was trained on.\n"
      "Its tokenizer must be that of RUN: name it in data.tokenizer before prepare.\n"
      "  mpirun -n 4 smalltalk order jobs/tiny.toml --set data.order=similar --out RUN\n"
      "  mpirun -n 4 smalltalk order jobs/tiny.toml --set data.order=similar --out RUN \\\n"
      "    --set data.tokenizer=OTHER/tokens/tokenizer.model --model OTHER/routers/0");
  job->callback([&run, options, order] {
    run = [options, order] {
      return run_stage(*options, Phase::order, false, [&](OpenedRun& opened) {
        if (opened.run.experiment.data.order == TextOrder::file) {
          throw Error("data.order = file reads documents as they lie: set it to similar");
        }
        require_tokens(opened.run);
        order_documents(opened.run, opened.world, *order);
      });
    };
  });
}

}  // namespace smalltalk
