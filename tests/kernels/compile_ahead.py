"""Compile the GPU kernels for cards that are not here and print what came out: `python -m tests.kernels.compile_ahead`.

Runs without TRITON_INTERPRET, which decides at import what a kernel is; so the tests start it as a process.
"""

import json
import re
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from kernels.gpu import cross, dense_topk, embedding_bag, prefix_attention, scan, select

PRODUCTS = r"(?:mma\.sync|wgmma\.mma_async)\.[\w.:]+"
POINTERS = {
    "row_ptr": "*i32", "scale_ptr": "*fp32", "mask_ptr": "*i32", "threshold_ptr": "*fp32", "count_ptr": "*i32",
    "out_score_ptr": "*fp32", "out_row_ptr": "*i32", "out_key_ptr": "*i64", "out_count_ptr": "*i32",
    "maximum_ptr": "*fp32", "vector_ptr": "*fp32", "query_ptr": "*fp32", "score_ptr": "*fp32", "key_ptr": "*i64",
    "status_ptr": "*i32",
}  # fmt: skip


def compile_kernel(kernel, arch, constants, pointers=None, num_warps=4, num_stages=3):
    """PTX and metadata; pointers are taken to be aligned to 16 bytes, as torch's are; a kind "i32:16" is a multiple."""
    kinds = POINTERS | (pointers or {})
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    aligned = [at for at, name in enumerate(names) if name.endswith("_ptr") or signature[name].endswith(":16")]
    attributes = {(at,): [["tt.divisibility", 16]] for at in aligned}
    signature = {name: kind.removesuffix(":16") for name, kind in signature.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps, "num_stages": num_stages}
    )


def cases(dim):
    shape = {"DIM": dim, "BLOCK_D": dense_topk.block_of(dim), "QUERIES": dense_topk.queries_of(16)}
    for int8 in (False, True):
        kind = "int8" if int8 else "fp16"
        pointers = {"row_ptr": "*i8", "query_ptr": "*i8"} if int8 else {"row_ptr": "*fp16", "query_ptr": "*fp16"}
        for shared in (True, False):
            mode = shape | {"INT8": int8, "SHARED": shared}
            name = f"{kind}_{'shared' if shared else 'own'}_masks_{dim}"
            yield f"scan_{name}", scan.scan_rows, mode | {"ROWS": dense_topk.SCAN_ROWS}, pointers, 4
            sample = mode | {"ROWS": dense_topk.SAMPLE_ROWS, "GROUP": dense_topk.SAMPLE_GROUP}
            yield f"sample_{name}", scan.sample_scores, sample, pointers, 4
    for vector in ("*fp32", "*fp16"):
        rescore = {"DIM": dim, "BLOCK_D": shape["BLOCK_D"], "ROWS": dense_topk.RESCORE_ROWS}
        yield f"rescore_{vector[1:]}_{dim}", scan.rescore_rows, rescore, {"vector_ptr": vector}, 4


def others():
    block = {"BLOCK": dense_topk.SELECT_BLOCK}
    yield "threshold", select.set_threshold, block, None, dense_topk.SELECT_WARPS
    for check in (True, False):
        yield f"select_{check}", select.select_best, block | {"CHECK": check}, None, dense_topk.SELECT_WARPS
    yield "rank", select.rank_hits, {"BLOCK": dense_topk.RANK_BLOCK, "OTHERS": dense_topk.RANK_OTHERS}, None, 4


def cross_cases(dim, rank=32):
    """The three kernels of a cross layer; float32 products as TF32 and as they are, halves on tensor cores."""
    names = ("grad", "x0", "x", "down", "up", "bias", "out", "dx0", "dx")
    for kind, precision in (("fp32", "tf32"), ("fp32", "ieee"), ("fp16", "ieee"), ("bf16", "ieee")):
        pointers = {f"{name}_ptr": f"*{kind}" for name in names}
        pointers |= {f"{name}_ptr": "*fp32" for name in ("h", "dh", "dup", "ddown", "dbias")}
        shape = cross.shape_of(dim, rank) | {"PRECISION": precision}
        for kernel in (cross.cross_forward, cross.cross_backward_rows, cross.cross_backward_weights):
            yield f"{kernel.__name__}_{kind}_{precision}", kernel, shape, pointers, cross.NUM_WARPS


def bag_cases(dim):
    pointers = {"hash_ptr": "*i64", "place_ptr": "*i64", "grad_ptr": "*fp32", "out_ptr": "*fp32"}
    shape = {"DIM": dim, "BLOCK_D": 1 << (dim - 1).bit_length(), "BAGS": embedding_bag.BAGS}
    for int8 in (False, True):
        kinds = pointers | {"table_ptr": "*i8" if int8 else "*fp32", "scale_ptr": "*fp32", "middle_ptr": "*fp32"}
        yield f"bag_forward_{'int8' if int8 else 'fp32'}", embedding_bag.bag_forward, shape | {"INT8": int8}, kinds, 4
    yield "bag_backward", embedding_bag.bag_backward, shape | {"PARTS": embedding_bag.NUM_PARTS}, pointers, 4


STRIDES = {"query": "mh", "key": "tg", "value": "tg", "prefix_key": "gp", "prefix_value": "gp"}


def attention_cases(head):
    """Three heads to a key-value head; float32 products as TF32 and as they are, halves on tensor cores."""
    names = ("query", "key", "value", "prefix_key", "prefix_value", "out")
    for kind, precision in (("fp32", "tf32"), ("fp32", "ieee"), ("fp16", "ieee"), ("bf16", "ieee")):
        pointers = {f"{name}_ptr": f"*{kind}" for name in names} | {"bounds_ptr": "*i32", "scale": "fp32"}
        pointers |= {f"{name}_{of}": "i32:16" for name, ofs in STRIDES.items() for of in ofs}
        shape = prefix_attention.shape_of(3, head, 4 if kind == "fp32" else 2) | {"PRECISION": precision}
        yield f"attend_{kind}_{precision}_{head}", prefix_attention.attend, shape, pointers, prefix_attention.NUM_WARPS


STAGES = {"cross": cross.NUM_STAGES, "attend": prefix_attention.NUM_STAGES}


def main():
    """Arguments: the card, then the op (`dense_topk`, `ranking` or `prefix_attention`), then dimensions."""
    found = []
    arch, op = int(sys.argv[1]), sys.argv[2]
    dims = [int(dim) for dim in sys.argv[3:]] or [128]
    if op == "prefix_attention":
        compiled = [case for dim in dims for case in attention_cases(dim)]
    elif op == "ranking":
        compiled = [*(case for dim in dims for case in cross_cases(dim)), *bag_cases(16)]
    else:
        compiled = [*(case for dim in dims for case in cases(dim)), *others()]
    for name, kernel, constants, pointers, num_warps in compiled:
        num_stages = STAGES.get(name.partition("_")[0], 3)
        made = compile_kernel(kernel, arch, constants, pointers, num_warps, num_stages)
        ptx = made.asm["ptx"]
        found.append(
            {
                "name": name,
                "shared_bytes": made.metadata.shared,
                "products": sorted(set(re.findall(PRODUCTS, ptx))),
                "wide_loads": len(re.findall(r"(?:ld\.global|cp\.async)\S*(?:\.v4| .*0x10)", ptx)),
                "cubin_bytes": len(made.asm["cubin"]),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
