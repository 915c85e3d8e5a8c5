"""The learning engine.

network     the recurrent policy network (torch only)
module      the network as an RLlib RLModule
train       PPO on Ray workers over one fold
"""
