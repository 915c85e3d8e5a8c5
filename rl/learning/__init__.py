"""The learning engine.

settings    of network, learning, algorithms and budget
network     the recurrent policy network (torch only)
rollout     acting: one fragment of many slots as arrays
losses      advantages, V-trace, the actor-critic loss
gradients   workers' gradients, the optimiser, PPO's passes
progress    schedules, the scale of rewards
module      the network as an RLlib module
learner     RLlib's keeper of weights and optimiser
runner      RLlib's worker as host of the sampler
crew        requests to workers that nobody waits for
algorithm   what A3C and PPO share: settings, counters, metrics, checkpoints
a3c, ppo    who waits for whom
adapter     every private part of Ray that is touched
build       from settings to an algorithm
panels      a panel on every node
cluster     connection to Ray
train       one run: folder, progress, checkpoints, resume
"""
