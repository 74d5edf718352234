"""The policy of GNN-RL: the graph's encoder, the agent, its episodes, and the space of plans that it moves in."""
