// Purpose: the loops of kernels_transformer.h. Included by kernels/all.inl in a namespace of its own.

static const TransformerKernels transformerTable = {};
