"""Hook code: what a layer of a SwissArmyTransformer model does differently."""
