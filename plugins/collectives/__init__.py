"""What the ops by which ranks meet have in common: AllReduce, AllGather, Send and Receive."""
