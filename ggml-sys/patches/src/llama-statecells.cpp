// Glue between the loader, the graph and the Rust library behind statecells.h. Format, checks and arithmetic are there.

#include "llama-statecells-check.h"

#include "llama-impl.h"
#include "llama-model.h"
#include "llama-model-loader.h"
#include "statecells.h"

#if __has_include("statecells-build.h")
#include "statecells-build.h" // STATECELLS_PATCHES
#else
#define STATECELLS_PATCHES "unknown"
#endif

#include <atomic>
#include <cmath>
#include <mutex>
#include <set>
#include <stdexcept>

struct statecells_deleter {
    void operator()(statecells_matrix * m) { statecells_matrix_free(m); }
};

struct llama_statecells_matrix {
    std::string scheme;
    ggml_tensor * handle = nullptr; // stands for the dense weight: its name and shape, no data
    std::vector<std::pair<const char *, ggml_tensor *>> sidecars;
    std::unique_ptr<statecells_matrix, statecells_deleter> matrix; // null until the data is loaded
    statecells_plan plan = {};

    // --statecells-check
    int layer = -1;
    bool checked = false;
    ggml_tensor * dense = nullptr;
    std::atomic<bool> runs_dense = false;
    std::mutex mutex; // of the finding
    statecells_finding finding = {};
    int64_t n_found_in = 0; // tokens of the product with the finding

    void look(const float * x, const float * y, int64_t n_tokens, int ith, int nth) {
        statecells_finding found = {};
        if (!checked || statecells_check(matrix.get(), x, y, n_tokens, ith, nth, &found) == 0) {
            return;
        }
        std::lock_guard<std::mutex> lock(mutex);
        const bool first = finding.place == 0 || std::make_pair(found.place, found.token) < std::make_pair(finding.place, finding.token);
        if (first) {
            finding    = found;
            n_found_in = n_tokens;
        }
    }

    ggml_tensor * find(const char * suffix) const {
        for (const auto & [s, t] : sidecars) {
            if (strcmp(s, suffix) == 0) { return t; }
        }
        return nullptr;
    }
};

struct llama_statecells {
    ggml_context_ptr ctx; // of the stand-ins
    std::vector<std::unique_ptr<llama_statecells_matrix>> matrices;
    size_t n_dense = 0, n_bytes_dense = 0;
    std::set<std::string> codes; // names of those that belong to a weight of the model
};

static std::vector<statecells_tensor> describe(const llama_statecells_matrix & m) {
    std::vector<statecells_tensor> res;
    for (const auto & [suffix, t] : m.sidecars) {
        res.push_back({ suffix, (int32_t) t->type, { t->ne[0], t->ne[1], t->ne[2], t->ne[3] }, t->data, t->data ? ggml_nbytes(t) : 0 });
    }
    return res;
}

ggml_tensor * llama_statecells_create_tensor(
        llama_statecells_ptr & sc, llama_model_loader & ml, const llama_hparams & hparams, const LLM_TN_IMPL & tn, const std::vector<int64_t> & ne) {
    const std::string name = tn.str();
    const std::string keys = "statecells." + LLM_TN_IMPL(ml.get_arch(), tn.tensor, nullptr, tn.bid, tn.xid).str();
    std::string scheme;
    if (tn.bid < 0 || tn.suffix == nullptr || strcmp(tn.suffix, "weight") != 0 || !ml.get_key(keys + ".scheme", scheme, false)) {
        return nullptr;
    }
    if (!sc) {
        uint32_t version = 0;
        ml.get_key("statecells.version", version);
        if (version != STATECELLS_FORMAT_VERSION) {
            throw std::runtime_error(format("StateCells format version %u is unknown here (known: %d): update the programs", version, STATECELLS_FORMAT_VERSION));
        }
        sc = std::make_shared<llama_statecells>();
        sc->ctx.reset(ggml_init({ ggml_tensor_overhead() * (ml.weights_map.size() + 1), nullptr, true }));
    }
    sc->codes.insert(LLM_TN_IMPL(ml.get_arch(), tn.tensor, "codes", tn.bid, tn.xid).str());
    float gap = 0.0f;
    ml.get_key(keys + ".gap", gap, false);
    // only the command line counts here, never the file's own metadata
    const char * flag  = scheme == "seeddelta" ? "seeddelta" : "statecells";
    const auto enable  = ml.kv_overrides.find(std::string(flag) + ".enable");
    const auto max_gap = ml.kv_overrides.find("statecells.gap");
    const bool enabled = enable != ml.kv_overrides.end() && enable->second.val_bool;
    const bool too_far = enabled && max_gap != ml.kv_overrides.end() && !(gap <= max_gap->second.val_f64);
    const ggml_tensor * dense = ml.get_tensor_meta(name.c_str());
    if (!dense && !enabled) {
        throw std::runtime_error(format("tensor '%s' is stored in coded form only (scheme %s): run with --%s", name.c_str(), scheme.c_str(), flag));
    }
    if (!dense && too_far) {
        throw std::runtime_error(format("tensor '%s' has gap %.4f, above --statecells-gap %.4f, and the file holds no dense weight: "
                "raise --statecells-gap or build with --dense keep", name.c_str(), gap, max_gap->second.val_f64));
    }
    const std::string arch = ml.get_arch_name();
    if (enabled && statecells_arch_bypasses_hook(arch.c_str())) {
        throw std::runtime_error(format("architecture '%s' does not run tensor '%s' through the StateCells hook", arch.c_str(), name.c_str()));
    }

    const auto check = ml.kv_overrides.find("statecells.check");

    auto m = std::make_unique<llama_statecells_matrix>();
    m->scheme  = scheme;
    m->layer   = tn.bid;
    m->checked = check != ml.kv_overrides.end() && check->second.val_bool;
    auto * cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const buft_list_t plain = { { cpu, ggml_backend_cpu_buffer_type() } }; // no repacking, no device memory
    const bool coded = enabled && !too_far;
    for (const char * const * suffix = statecells_suffixes(); *suffix; suffix++) {
        const LLM_TN_IMPL tn_sidecar(ml.get_arch(), tn.tensor, *suffix, tn.bid, tn.xid);
        const ggml_tensor * meta = ml.get_tensor_meta(tn_sidecar.str().c_str());
        if (meta && ggml_nelements(meta) == 0) { // ggml divides by dimensions
            throw std::runtime_error(format("tensor '%s': sidecar '%s' is empty: the file is damaged", name.c_str(), *suffix));
        }
        if (meta && coded) {
            m->sidecars.emplace_back(*suffix, ml.create_tensor(hparams, &plain, &plain, &plain, &plain, tn_sidecar,
                    { meta->ne[0], meta->ne[1], meta->ne[2], meta->ne[3] }, 0));
        } else if (meta) {
            ml.n_created++;
            ml.size_data -= ggml_nbytes(meta);
        }
    }
    if (!coded) {
        sc->n_dense++;
        sc->n_bytes_dense += ggml_nbytes(dense);
        return nullptr;
    }
    if (dense && m->checked) {
        m->dense = ml.create_tensor(hparams, &plain, &plain, &plain, &plain, tn, { ne[0], ne.size() > 1 ? ne[1] : 1 }, 0);
    } else if (dense) {
        ml.n_created++;
        ml.size_data -= ggml_nbytes(dense);
    }
    const auto tensors = describe(*m);
    char error[256] = "";
    if (statecells_plan_matrix(scheme.c_str(), ne[0], ne.size() > 1 ? ne[1] : 1, tensors.data(), tensors.size(), &m->plan, error, sizeof(error)) != 0) {
        throw std::runtime_error(format("tensor '%s': %s", name.c_str(), error));
    }
    // a weight that bypasses the hook must not compute: ggml has no product with I8
    m->handle = ggml_new_tensor_2d(sc->ctx.get(), GGML_TYPE_I8, ne[0], ne[1]);
    m->handle->extra = m.get();
    ggml_set_name(m->handle, name.c_str());
    sc->matrices.push_back(std::move(m));
    return sc->matrices.back()->handle;
}

void llama_statecells_check_names(const llama_statecells_ptr & sc, const llama_model_loader & ml) {
    for (const auto & [name, weight] : ml.weights_map) {
        const size_t stem = name.rfind(".codes");
        const bool is_code = name.find(".ffn_") != std::string::npos && stem != std::string::npos && stem + 6 == name.size();
        if (is_code && !(sc && sc->codes.count(name) > 0)) {
            throw std::runtime_error(format("tensor '%s': the model has no such FFN weight, or the file no scheme for it", name.c_str()));
        }
    }
}

void llama_statecells_add_names(const llama_statecells_ptr & sc, std::vector<std::pair<std::string, ggml_tensor *>> & tensors_by_name) {
    for (size_t i = 0; sc && i < sc->matrices.size(); i++) {
        // in front of a dense weight of the same name: the graph asks for the stand-in
        tensors_by_name.emplace(tensors_by_name.begin(), sc->matrices[i]->handle->name, sc->matrices[i]->handle);
    }
}

void llama_statecells_load(const llama_statecells_ptr & sc) {
    if (!sc) {
        return;
    }
    size_t n_bytes = 0;
    for (auto & m : sc->matrices) {
        for (const auto & [suffix, t] : m->sidecars) {
            if (!ggml_backend_buffer_is_host(t->buffer)) {
                throw std::runtime_error(format("tensor '%s' must be in CPU memory: remove --override-tensor for it", t->name));
            }
            n_bytes += ggml_nbytes(t);
        }
        m->handle->buffer = m->sidecars[0].second->buffer;
        const auto tensors = describe(*m);
        char error[256] = "";
        m->matrix.reset(statecells_matrix_new(m->scheme.c_str(), m->handle->ne[0], m->handle->ne[1], tensors.data(), tensors.size(), error, sizeof(error)));
        if (!m->matrix) {
            throw std::runtime_error(format("tensor '%s': %s", m->handle->name, error));
        }
    }
    // a warning, because the programs hide what the library says below that level
    LLAMA_LOG_WARN("statecells: %zu FFN tensors run from codes (%.2f MiB), %zu dense (%.2f MiB)\n",
            sc->matrices.size(), n_bytes / 1024.0 / 1024.0, sc->n_dense, sc->n_bytes_dense / 1024.0 / 1024.0);
}

static void statecells_op_prepare(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto * m = (const llama_statecells_matrix *) userdata;
    const ggml_tensor * x = dst->src[0];
    statecells_prepare(m->matrix.get(), (const float *) x->data, ggml_nrows(x), dst->data, ggml_nbytes(dst), ith, nth);
}

static void statecells_op_apply(ggml_tensor * dst, int ith, int nth, void * userdata) {
    auto * m = (llama_statecells_matrix *) userdata;
    const ggml_tensor * x = dst->src[0];
    const ggml_tensor * p = dst->src[1];
    statecells_apply(m->matrix.get(), (const float *) x->data, p->data, ggml_nbytes(p), ggml_nrows(x), (float *) dst->data, ith, nth);
    m->look((const float *) x->data, (const float *) dst->data, ggml_nrows(x), ith, nth);
}

ggml_tensor * llama_statecells_mul_mat(ggml_context * ctx, ggml_tensor * w, ggml_tensor * x) {
    if (w->type != GGML_TYPE_I8 || w->extra == nullptr) {
        return nullptr;
    }
    auto * m = (llama_statecells_matrix *) w->extra;
    if (m->runs_dense) {
        return ggml_mul_mat(ctx, m->dense, x);
    }
    x = x->type == GGML_TYPE_F32 && ggml_is_contiguous(x) ? x : ggml_cont(ctx, ggml_cast(ctx, x, GGML_TYPE_F32));
    ggml_tensor * prepared = x;
    if (m->plan.prepared_ne0 > 0) {
        ggml_tensor * args[] = { x, m->sidecars[0].second };
        prepared = ggml_custom_4d(ctx, (ggml_type) m->plan.prepared_type, m->plan.prepared_ne0, ggml_nrows(x) * m->plan.prepared_columns, 1, 1,
                args, 2, statecells_op_prepare, GGML_N_TASKS_MAX, m);
    }
    if (m->plan.project) {
        prepared = ggml_mul_mat(ctx, m->find("dict"), prepared);
    }
    ggml_tensor * args[] = { x, prepared, m->sidecars[0].second };
    return ggml_custom_4d(ctx, GGML_TYPE_F32, w->ne[1], x->ne[1], x->ne[2], x->ne[3], args, 3, statecells_op_apply, GGML_N_TASKS_MAX, m);
}

static std::string describe(const llama_statecells_matrix & m, int64_t n_tokens, const llama_pos * pos) {
    const auto & f = m.finding;
    // the last layer sees only those tokens whose output is wanted
    const std::string position = m.n_found_in == n_tokens && pos ? format(" (position %d)", (int) pos[f.token]) : "";
    return format("layer %d, tensor '%s': %s %lld of token %lld%s is %s", m.layer, m.handle->name, f.place == 1 ? "input" : "output",
            (long long) f.index, (long long) f.token, position.c_str(), std::isnan(f.value) ? "NaN" : f.value > 0 ? "inf" : "-inf");
}

llama_statecells_verdict llama_statecells_check(const llama_statecells_ptr & sc, int64_t n_tokens, const llama_pos * pos, bool can_redo) {
    std::vector<llama_statecells_matrix *> found; // those of the first layer that has any
    for (size_t i = 0; sc && i < sc->matrices.size(); i++) {
        auto * m = sc->matrices[i].get();
        std::lock_guard<std::mutex> lock(m->mutex);
        if (m->finding.place != 0 && !m->runs_dense && (found.empty() || m->layer <= found[0]->layer)) {
            if (!found.empty() && m->layer < found[0]->layer) {
                found.clear();
            }
            found.push_back(m);
        }
    }
    llama_statecells_verdict verdict = LLAMA_STATECELLS_FINE;
    // a bad output is the cause of the bad inputs behind it
    llama_statecells_matrix * cause = nullptr;
    for (auto * m : found) {
        if (!cause || m->finding.place > cause->finding.place) {
            cause = m;
        }
    }
    if (cause && cause->finding.place == 2 && cause->dense && can_redo) {
        LLAMA_LOG_WARN("statecells: %s: it runs from its dense weight from now on\n", describe(*cause, n_tokens, pos).c_str());
        cause->runs_dense = true;
        verdict = LLAMA_STATECELLS_REDO;
    } else if (cause) {
        const char * why = cause->finding.place == 1 ? "it was not finite before" : cause->dense ? "this model cannot repeat a batch" : "the file holds no dense weight";
        LLAMA_LOG_ERROR("statecells: %s: %s, the request is stopped\n", describe(*cause, n_tokens, pos).c_str(), why);
        verdict = LLAMA_STATECELLS_FAIL;
    }
    for (size_t i = 0; sc && i < sc->matrices.size(); i++) {
        std::lock_guard<std::mutex> lock(sc->matrices[i]->mutex);
        sc->matrices[i]->finding = {};
    }
    return verdict;
}

const char * llama_statecells_version(void) {
    static const std::string version = format("%s, patches %s", statecells_version(), STATECELLS_PATCHES);
    return version.c_str();
}
