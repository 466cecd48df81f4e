class A(nn.Module):
  pass
