"""The configuration keys that every upcycled architecture shares."""

from dataclasses import dataclass


# `eq` and `repr` off: the generated methods would shadow those of the transformers configuration.
@dataclass(kw_only=True, eq=False, repr=False)
class MoeOptions:
    """Keys of `config.json` that say where the experts are and how tokens reach them."""

    num_experts: int = 8
    """E, the number of experts in every MoE layer."""

    num_experts_per_tok: int = 2
    """K, the number of experts that see each token (top-k), 1 <= K <= E."""

    moe_layers: list[int] | None = None
    """Layers, counted from 0, that hold experts; the others stay dense. None means all layers."""

    route_by: str = "token"
    """What a router decides for: each "token" by itself, or a "sequence" by its tokens' mean."""

    norm_topk_prob: bool = True
    """Whether the K chosen weights are scaled to sum to 1, which makes copied experts exact."""

    router_aux_loss_coef: float = 0.01
    """What the balance loss is multiplied by before it is added to the task's loss."""

    router_z_loss_coef: float = 0.0
    """What the z-loss is multiplied by before it is added to the task's loss."""

    output_router_logits: bool = False
    """Whether outputs carry `router_logits` and the losses of the router count in training."""

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number `layer`, counted from 0, holds experts."""
        return self.moe_layers is None or layer in self.moe_layers

    def check_experts(self, num_layers: int) -> None:
        """Check the keys above against each other and against the number of layers.

        Raises:
            ValueError: naming the key, its value and the limit it breaks.
        """
        experts, top_k = self.num_experts, self.num_experts_per_tok
        if not isinstance(experts, int) or experts < 1:
            raise ValueError(f"num_experts must be a whole number of at least 1, not {experts!r}.")
        if not isinstance(top_k, int) or not 1 <= top_k <= experts:
            raise ValueError(f"num_experts_per_tok must lie between 1 and num_experts = {experts}, not {top_k!r}.")
        if self.route_by not in ("token", "sequence"):
            raise ValueError(f"route_by must be 'token' or 'sequence', not {self.route_by!r}.")
        for key in ("router_aux_loss_coef", "router_z_loss_coef"):
            coefficient = getattr(self, key)
            if not isinstance(coefficient, int | float) or not coefficient >= 0:
                raise ValueError(f"{key} must be 0 or a positive number, not {coefficient!r}.")
        layers = self.moe_layers or ()
        wrong = [n for n in layers if not isinstance(n, int) or not 0 <= n < num_layers]
        if wrong:
            raise ValueError(f"moe_layers names {wrong}, but the model's layers are 0 to {num_layers - 1}.")


def expert_parallel_plan(experts: str) -> dict[str, str]:
    """Whole experts on each rank; `experts` is their module's path, with `*` for the layer."""
    tensors = ("up_proj", "up_proj_bias", "down_proj", "down_proj_bias")
    return {**{f"{experts}.{name}": "grouped_gemm" for name in tensors}, experts: "ep_dispatch_experts"}
