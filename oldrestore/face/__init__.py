"""The face stage: detect -> align -> enhance -> warp back -> blend, on tensors, in one process."""
