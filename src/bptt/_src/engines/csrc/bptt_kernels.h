/* The C interface of the kernels: a whole sequence of one layer in one call.

   No torch, no Python, no OpenMP in here: pointers, sizes, and a function that runs threads.

   Names of sizes: T steps, B sequences, I inputs, H hidden units, G gates (blocks of H rows of the
   weights), U weights of each hidden unit, N rows: all steps of all sequences, step after step
   (torch's packed layout; a padded batch is the case of B rows at each step). All arrays are dense,
   row after row, of the call's dtype where nothing else is said, and do not overlap, unless both
   are inputs. Nothing is changed but what is marked `out` or `in, out`. A pointer marked "or null"
   may be missing. */
#ifndef BPTT_KERNELS_H
#define BPTT_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum bptt_isa { BPTT_PORTABLE, BPTT_AVX2, BPTT_AVX512, BPTT_ISAS };

/* Grows with each change of anything below. */
#define BPTT_INTERFACE 16

/* The most states of a cell. The first is h, the output too; where a cell has fewer, their pointers
   are null. */
#define BPTT_STATES 2

/* What a call returns besides 0. */
enum bptt_error { BPTT_NO_MEMORY = -1, BPTT_NO_CELL = -2, BPTT_NO_TYPE = -3 };

/* What a call computes in. With BPTT_BF16 all that it is given and gives is float; both sides of
   each product are rounded to bfloat16, unless there are only few rows, and the product is summed
   in float. */
enum bptt_type { BPTT_FLOAT, BPTT_DOUBLE, BPTT_BF16 };

typedef struct bptt_sequence {
    int64_t cell;      /* its number, below bptt_cells() */
    int64_t type;      /* enum bptt_type */
    int64_t threads;   /* at most */
    int64_t reverse;   /* 1: the last step comes first */
    int64_t steps, batch, inputs, hidden, rows; /* T, B, I, H, N */
    int64_t outputs;   /* P, or H where there is no projection */
    const int64_t *sizes; /* [T]: sequences that are still running at each step; never increasing,
                             their sum is N and the first is B */

    const void *x;            /* [N, I] */
    const void *w_ih, *w_hh;  /* [G*H, I], [G*H, H]: torch.nn's layout and order of gates */
    const void *w_hr;         /* [P, H], or null: h is W_hr times what the equations call h, and has
                                 P elements wherever below it has H; for a cell that projects */
    const void *b_ih, *b_hh;  /* [G*H], or null */
    const void *units;        /* [U, H]; null where U is 0 */
    const void *state_0[BPTT_STATES]; /* each [B, H] */
    const uint8_t *resets;    /* [N], or null: not 0 where the state is zero before the row's step */

    /* Results of the forward pass, which the backward pass reads. */
    void *y;    /* [N, H]: h_t; forward: out */
    void *kept; /* bptt_kept() elements: what the backward pass needs besides; forward: out, or null
                   where there will be no backward pass, or there are none. */
    void *state_n[BPTT_STATES]; /* each [B, H]; forward: out */

    /* The backward pass. */
    const void *carry; /* [N], or null: factors of the state's gradient where it leaves a row's step;
                          at 0, as at a reset, nothing passes, not even what is not finite */
    const void *d_after[BPTT_STATES]; /* ∂L/∂(state after each step), the first ∂L/∂y; each [N, H],
                                         by windows [rows of windows, H]; or null */
    void *d_state[BPTT_STATES]; /* in: ∂L/∂state_n, out: ∂L/∂state_0; each [B, H], or one row for
                                   each window. All null: zero, and nothing comes out */
    void *d_x;         /* out: [N, I], or null; by windows where by_windows says so */
    void *d_w_ih, *d_w_hh, *d_w_hr; /* out: as the weights, or null */
    void *d_b_ih, *d_b_hh; /* out: [G*H], or null */
    void *d_units;     /* out: [U, H], or null */
    double *row_norms; /* out: for each row of the walk ‖∂L/∂state_t‖, of one state beside the other,
                          as the step after hands them down (or d_state), d_after not added yet;
                          [rows of the walk, states]; or null */

    /* Windows that overlap, side by side as one batch; walk_steps is 0 where there are none. Their
       rows lie step after step too, the last step first. */
    int64_t walk_steps;        /* steps of the longest window */
    const int64_t *walk_sizes; /* [walk_steps]: windows still running; never increasing */
    const int64_t *window_rows; /* the row of the sequence that each row of the windows copies */
    int64_t by_windows;        /* 1: d_x has a row for each row of the windows */
} bptt_sequence;

/* What an instruction works on: rows of so many columns. */
enum bptt_place_kind {
    BPTT_ROWS,      /* memory of the caller's, with a row for each step of each sequence; or, with
                       row = 0, one row for all of them */
    BPTT_STATE,     /* of each sequence, from step to step */
    BPTT_BETWEEN,   /* of each sequence, within a step */
    BPTT_TEMPORARY, /* of a few sequences, from one product to the next */
    BPTT_PART       /* some columns of another place */
};

typedef struct bptt_place {
    int64_t kind, width;   /* enum bptt_place_kind; columns */
    int64_t row;           /* ROWS: elements from one row to the next */
    int64_t whole, offset; /* PART: the number of the place, an earlier one; the first column */
    void *data;            /* ROWS: the memory; STATE: before the first step, [B, width] */
    void *last;            /* STATE: out: after the last step, [B, width]; may be `data` */
} bptt_place;

/* to = op(a, b, c): the numbers of places. A product is to (+)= a W: a and `to` are no TEMPORARY, b
   is the number of W, and c whether it is added. */
typedef struct bptt_instruction { int64_t op, to, a, b, c; } bptt_instruction;

/* The right side of a product, W[depth, columns]; or its transpose is there, [columns, depth]. */
typedef struct bptt_weight {
    int64_t depth, columns, row; /* elements from one row in memory to the next */
    int64_t is_transposed;
    const void *data;
} bptt_weight;

/* A loop over steps, whose step is a program. */
typedef struct bptt_loop {
    int64_t type, threads;
    int64_t reverse, steps, batch; /* as in a bptt_sequence: the rows' order, T, B */
    const int64_t *sizes;          /* [T] */
    int64_t states;                /* places that are STATE */
    int64_t n_places;
    const bptt_place *places;
    int64_t instructions;
    const bptt_instruction *code;
    int64_t n_weights;
    const bptt_weight *weights;
    const uint8_t *zero_before; /* [N], or null: not 0 where all states are zero before the step */
    const void *factors_after;  /* [N], or null: of all states after the step; at 0 they are zero */
    const uint8_t *zero_after;  /* [N], or null: not 0 where they are zero after the step */
    double *norms;              /* out: of each state before the step, [N, states], or null */
} bptt_loop;

/* C = A B + bias, C[M, N], all dense; of A[M, K] or of B[K, N] the transpose may be there. */
typedef struct bptt_product {
    int64_t type, threads;
    int64_t rows, depth, columns; /* M, K, N */
    int64_t of_a, of_b;           /* 1: the memory holds the transpose */
    const void *a, *b;
    const void *bias;             /* [N], or null */
    void *c;                      /* out */
} bptt_product;

/* A linear readout and its cross-entropy: losses -ln softmax(W h + b)[target], and the gradients of
   their sum, each times its factor. */
typedef struct bptt_readout {
    int64_t type, threads;
    int64_t rows, hidden_size, labels; /* N, H, V */
    const void *hidden;     /* [N, H] */
    const void *weight;     /* [V, H] */
    const void *bias;       /* [V], or null */
    const int64_t *targets; /* [N], each from 0 to V - 1 */
    const void *factors;    /* [N], or null: all 1; they are not in the losses */
    void *losses;           /* out: [N] */
    void *d_hidden, *d_weight, *d_bias; /* out: as these, or null */
} bptt_readout;

/* Of each of these blocks of W there is a local derivative: first those of c, if there is a second
   state, then those of m, which is h, or what is projected to it. */
typedef struct bptt_terms {
    int64_t of_c, of_m;    /* how many; R together */
    const int64_t *blocks; /* [R]: which of W's blocks of H rows */
    const void *values;    /* [S, R, H] */
} bptt_terms;

/* One step of one layer, and D losses of each of S sequences on their way back through it: from
   ∂L/∂(state after it) to that before it. P is the size of h, H unless there is a projection. */
typedef struct bptt_flow_step {
    int64_t is_double, threads;
    int64_t sequences, losses;                 /* S, D */
    int64_t inputs, hidden, outputs, states;   /* I, H, P, 1 or 2 */
    int64_t stride; /* of d_h, d_c, credit and norms: rows from one sequence to the next, at least D */
    bptt_terms of_hidden, of_input; /* with respect to W_hh h_before and W_ih x */
    const void *c_to_m;             /* ∂m/∂c, [S, H], or null */
    const void *h_to_m, *c_to_c, *h_to_c, *c_before_to_m; /* with respect to the state before, by no
                                                             weight, [S, H], or null */
    const void *w_hh;    /* [G_h*H, P] */
    const void *w_ih;    /* [G_x*H, I], for d_x; or null */
    const void *projected;  /* W_ih x, [S, G_x*H], for the credit; or null */
    int64_t blocks_x;       /* G_x, of those */
    const uint8_t *resets;  /* [S], or null: not 0 where the state is zero before the step */
    const void *d_m;     /* ∂L/∂m, [S, D, H], where it is not d_h; or null */
    void *d_h, *d_c;     /* in, out: [S, D of stride, P and H]; d_c: where there are two states */
    void *d_x;           /* out: [S, D, I], or null */
    double *credit;      /* out: ⟨∂L/∂x, x⟩, [S, D of stride], or null */
    double *norms_h, *norms_c; /* out: of d_h and d_c, [S, D of stride]; a row where both are below
                                  100 times the smallest number, or 1e-150, is made zero */
} bptt_flow_step;

/* As libgomp's own functions of these names. */
typedef void (*bptt_parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*bptt_number)(void);

/* A linear recurrence, h_t = a_t h_{t-1} + b_t elementwise, or back in time with the conjugate of a,
   h_t = a_{t+1}* h_{t+1} + b_t. All are dense; a complex number is two, its real part first. */
typedef struct {
    int64_t type;             /* BPTT_FLOAT or BPTT_DOUBLE */
    int64_t is_complex;
    int64_t threads;          /* the most that may be taken */
    int64_t reverse;          /* back in time */
    int64_t steps, columns;   /* T and C, 1 at least */
    const void *a, *b;        /* [T, C] */
    const void *first;        /* [C]: h before the first step; or null: zero, as it is back in time */
    void *to;                 /* [T, C]: h_t; it may be b */
} bptt_scan;

#if defined(_WIN32)
#define BPTT_API __declspec(dllexport)
#elif defined(__GNUC__)
#define BPTT_API __attribute__((visibility("default")))
#else
#define BPTT_API
#endif

BPTT_API int bptt_interface(void); /* BPTT_INTERFACE of the library */

/* Whether this processor, and this build, has an instruction set: 1 or 0. */
BPTT_API int bptt_has_isa(int isa);

/* Choose an instruction set for all later calls; returns 0, or -1 where there is none such. The
   first call that needs one takes the widest if none was chosen. */
BPTT_API int bptt_use_isa(int isa);
BPTT_API int bptt_isa_in_use(void);

/* Whether the instruction set in use has an enum bptt_type, for layers and the readout: 1 or 0. */
BPTT_API int bptt_has_type(int64_t type);

/* Take the threads from here; until then, and in a forked child, everything runs on one thread. */
BPTT_API void bptt_use_threads(bptt_parallel, bptt_number number, bptt_number count);

/* How many cells there are, numbered from 0; the name of one, or null. */
BPTT_API int64_t bptt_cells(void);
BPTT_API const char *bptt_cell_name(int64_t cell);

/* The sizes of a cell: G, how many of its last gates keep W_hh h apart from W_ih x, the number of
   states, U. Returns 0 or BPTT_NO_CELL. */
BPTT_API int bptt_cell_sizes(int64_t cell, int64_t sizes[4]);

/* The name of an instruction, bptt_instruction.op, or null: they are numbered from 0. */
BPTT_API const char *bptt_instruction_name(int64_t op);

/* How many elements `kept` has, or BPTT_NO_CELL. It holds the gates, [N, G, H], then [N, H] for
   each gate whose W_hh h is apart, for what a projection is of, and for each state but h; H is
   padded to whole 64 bytes. */
BPTT_API int64_t bptt_kept(int64_t cell, int64_t type, int64_t rows, int64_t hidden,
                           int64_t projects);

/* These return 0, or an error: enum bptt_error. */
BPTT_API int bptt_forward(const bptt_sequence *);
BPTT_API int bptt_backward(const bptt_sequence *);
BPTT_API int bptt_run_loop(const bptt_loop *);
BPTT_API int bptt_multiply(const bptt_product *);
BPTT_API int bptt_cross_entropy(const bptt_readout *);
BPTT_API int bptt_flow_back(const bptt_flow_step *);
BPTT_API int bptt_run_scan(const bptt_scan *);

/* Elementwise, for the tests: out[i] = f(in[i]); which: 0 exp, 1 tanh, 2 sigmoid. */
BPTT_API void bptt_function(int which, int64_t is_double, int64_t n, const void *in, void *out);

/* Fused multiply-adds in registers, of BPTT_FLOAT or BPTT_BF16, on so many threads: GFLOP/s. */
BPTT_API double bptt_peak(int64_t type, int threads, double seconds);

#ifdef __cplusplus
}
#endif
#endif
