// The stages of a run on the ranks of a job: `launch` strings them together, other jobs do one
// each.
#pragma once

#include <string>
#include <vector>

#include "smalltalk/comm/rank_plan.hpp"
#include "smalltalk/comm/session.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"
#include "smalltalk/mixture/routing/document_order.hpp"
#include "smalltalk/mixture/routing/sharding.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/work_queue.hpp"

namespace smalltalk {

// Makes order.h5; `keeps_any` as of make_order(). REQUIRES tokens to be there. Collective.
void order_documents(const Run& run, Communicator& world, const OrderOptions& options,
                     bool keeps_any = false);

// Trains the routers. REQUIRES open tokens, as all that follows. Collective.
void route(const Run& run, const RankPlan& plan, Communicator& world);

ShardOptions shard_options(const Run& run);  // as the experiment has it
// Makes shards.h5 and the shards of the controls. Collective.
void shard(const Run& run, Communicator& world, const ShardOptions& options);

// Evaluates what is complete and unclaimed, then writes results.json and report.html if nothing is
// missing and all cells were asked for. Needs no other rank.
void evaluate_from_queue(const Run& run, const std::string& start, WorkPart part = {});

// Compares, writes RUN/comparison-SPLIT.json and renews the page. REQUIRES compare_cells() to be
// complete.
Comparison write_comparison(const Run& run, const std::vector<TrainUnit>& units,
                            const CompareOptions& options);

// All that launch computes, from tokens to results. The world talks until the shards are written,
// then each group alone.
void run_stages(Run& run, const RankPlan& plan, Communicator& world, const std::string& start);

}  // namespace smalltalk
