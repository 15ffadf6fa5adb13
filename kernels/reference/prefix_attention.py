"""Attention to a shared prefix in plain torch, one mask over all keys: the definition of correct, on any device."""

# M = queries, T = own keys, P = prefix keys, H = heads, G = key-value heads, K = head size

from __future__ import annotations

import torch
from torch import Tensor

from kernels.prefix_attention import Sight


def prefix_attention(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
) -> Tensor:
    """See `kernels.prefix_attention`; arguments are checked there."""
    num_own, num_prefix = key_TGK.shape[0], prefix_key_GPK.shape[1]
    repeats = query_MHK.shape[1] // key_TGK.shape[1]
    key_HNK = torch.cat([prefix_key_GPK, key_TGK.transpose(0, 1)], 1).float().repeat_interleave(repeats, 0)
    value_HNK = torch.cat([prefix_value_GPK, value_TGK.transpose(0, 1)], 1).float().repeat_interleave(repeats, 0)
    place_T = torch.arange(num_own, device=query_MHK.device)
    first, first_stop, own, own_stop = (column[:, None] for column in sight.bounds_on(query_MHK.device).unbind(1))
    seen_MT = ((place_T >= first) & (place_T < first_stop)) | ((place_T >= own) & (place_T < own_stop))
    seen_MN = torch.cat([seen_MT.new_ones(len(seen_MT), num_prefix), seen_MT], 1)
    score_HMN = query_MHK.float().transpose(0, 1) @ key_HNK.transpose(1, 2) * query_MHK.shape[2] ** -0.5
    weight_HMN = score_HMN.masked_fill(~seen_MN, -torch.inf).softmax(-1)
    out_MHK: Tensor = (weight_HMN @ value_HNK).transpose(0, 1).to(query_MHK.dtype)
    return out_MHK
